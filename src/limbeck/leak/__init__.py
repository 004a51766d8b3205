"""What a distilled set or its soft labels reveal: memorization experiments, and the audit of what training records leave behind."""

from limbeck.registry import Registry

EXPERIMENTS = Registry(
    "leak experiment",
    {
        "logistic": "limbeck.leak.logistic:LOGISTIC",
        "temperature": "limbeck.leak.temperature:TEMPERATURE",
        "class-scaling": "limbeck.leak.class_scaling:CLASS_SCALING",
        "mlp": "limbeck.leak.mlp:MLP_LEAK",
        "treatments": "limbeck.leak.mlp:TREATMENTS_LEAK",
        "modular": "limbeck.leak.modular:MODULAR",
        "picture": "limbeck.leak.picture:PICTURE",
        "sequences": "limbeck.leak.sequences:SEQUENCES",
        "structured": "limbeck.leak.structured:STRUCTURED",
    },
)
