"""Label rules and transforms: from an expert's logits to the labels that a distilled set stores, and changes to those labels that ask what in them counts."""

from limbeck.registry import Registry

TRANSFORMS = Registry(
    "label transform",
    {
        "swap": "limbeck.labels.transforms:Swap",
        "top-k": "limbeck.labels.transforms:TopK",
        "remove-images": "limbeck.labels.transforms:RemoveImages",
        "remove-label": "limbeck.labels.transforms:RemoveLabel",
        "smoothing": "limbeck.labels.transforms:Smoothing",
        "permute-tail": "limbeck.labels.transforms:PermuteTail",
        "permute-classes": "limbeck.labels.transforms:PermuteClasses",
        "temperature": "limbeck.labels.transforms:Temperature",
        "quantize": "limbeck.labels.transforms:Quantize",
        "noise": "limbeck.labels.transforms:Noise",
        "class-mean": "limbeck.labels.transforms:ClassMean",
        "harden": "limbeck.labels.transforms:Harden",
    },
)
