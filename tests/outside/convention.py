"""A convention of FLOPs: nothing but the MLP."""

from tokenprune.costs.conventions import register_convention


@register_convention("mlp_alone", "2 a multiply-add, the MLP, text")
def mlp_alone(llm, sources, receivers, mlp):
    return 2 * mlp * llm.mlp_matrices * llm.width * llm.mlp_width
