"""Distillation methods. A method is objective x parametrization x label rule; adding one is one file and one line here."""

from limbeck.registry import Registry

METHODS = Registry(
    "method",
    {
        "random-real": "limbeck.methods.random_real:RandomReal",
        "dc": "limbeck.methods.gradient_matching:GradientMatching",
        "dsa": "limbeck.methods.gradient_matching:SiameseGradientMatching",
        "dm": "limbeck.methods.distribution_matching:DistributionMatching",
        "ncfm": "limbeck.methods.ncfm:NCFM",
        "sre2l": "limbeck.methods.sre2l:SRe2L",
        "rded": "limbeck.methods.rded:RDED",
        "bptt": "limbeck.methods.bptt:BPTT",
        "label-learning": "limbeck.methods.bptt:LabelLearning",
        "mtt": "limbeck.methods.trajectory_matching:TrajectoryMatching",
        "tesla": "limbeck.methods.trajectory_matching:TESLA",
        "frepo": "limbeck.methods.frepo:FRePo",
    },
)
SELECTORS = Registry(
    "selector",
    {
        "random": "limbeck.methods.selectors:random_order",
        "herding": "limbeck.methods.selectors:herding",
        "k-center": "limbeck.methods.selectors:k_center",
        "ce-quantile": "limbeck.methods.selectors:cross_entropy_quantile",
    },
)
#: What a method's class can declare as ``publishes``: what its sets hold of the training images by design.
PUBLISHES = ("no training image", "parts of training images", "whole training images")
