"""Inside a vision tower: classifiers of timm whose patches are pruned between blocks."""
