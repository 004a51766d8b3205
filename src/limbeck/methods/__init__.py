"""Distillation methods. A method is objective x parametrization x label rule; adding one is one file and one line here."""

from limbeck.registry import Registry

METHODS = Registry("method", {"random-real": "limbeck.methods.random_real:RandomReal"})
SELECTORS = Registry(
    "selector",
    {
        "random": "limbeck.methods.selectors:random_order",
        "herding": "limbeck.methods.selectors:herding",
        "k-center": "limbeck.methods.selectors:k_center",
        "ce-quantile": "limbeck.methods.selectors:cross_entropy_quantile",
    },
)
