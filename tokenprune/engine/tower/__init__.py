"""Inside a vision tower, between whose layers patches leave: that of an MLLM, or a classifier of timm."""
