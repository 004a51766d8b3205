"""What a distilled set has learned: one file an analysis, all behind the interface of `limbeck.analyze.subject`.

`ANALYSES` is the visible table. Importing this package imports no torch, so that the command line can list it at once.
"""

from limbeck.registry import Registry

ANALYSES = Registry(
    "analysis",
    {
        "recognition": "limbeck.analyze.recognition:Recognition",
        "mixing": "limbeck.analyze.mixing:Mixing",
        "agreement": "limbeck.analyze.agreement:Agreement",
        "curvature": "limbeck.analyze.curvature:Curvature",
        "influence": "limbeck.analyze.influence:Influence",
        "semantics": "limbeck.analyze.semantics:Semantics",
    },
)
