"""How students are trained to judge a set, as named and versioned data. Free of torch."""

from pydantic import BaseModel, ConfigDict

from limbeck.errors import OptionError, nearest
from limbeck.types.recipe import Recipe

DSA_ALL = "dsa:color_crop_cutout_flip_scale_rotate"


class Protocol(BaseModel):
    """A training recipe for students, its version (raised whenever a number could change), its source, and how it differs from the published one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int
    recipe: Recipe
    source: str
    note: str

    @property
    def label(self) -> str:
        """``name/version``: what is written beside every number."""
        return f"{self.name}/{self.version}"


_SGD = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 256}
_HALF = {"schedule": "step", "decay_at": (0.5,), "decay": 0.1}
_QUARTERS = {"schedule": "step", "decay_at": (0.25, 0.5, 0.75), "decay": 0.3}
_QUIRKS = {"extra_epoch": True, "restart_momentum_at_decay": True}
_DC = "Zhao, Mopuri and Bilen 2021 (arXiv 2006.05929)"
_DSA = "Zhao and Bilen 2021 (arXiv 2102.08259)"
_LABEL = "Qin, Deng and Alvarez-Melis 2024 (arXiv 2406.10485)"
_SRE2L = "Yin, Xing and Shen 2023 (arXiv 2306.13092)"
_LEAK = "Behrens and Zdeborova 2025 (arXiv 2506.14457)"
_FREPO = "Zhou, Nezhadarya and Ba 2022 (arXiv 2206.00719)"

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="dc", version=1, recipe=Recipe(**_SGD, **_HALF, epochs=300), source=_DC, note="300 epochs, rate x 0.1 at half, no augmentation"
        ),
        Protocol(
            name="dc-compat",
            version=1,
            recipe=Recipe(**_SGD, **_HALF, **_QUIRKS, epochs=300),
            source=_DC,
            note="as published code runs: 301 epochs, decay after epoch 152, momentum lost at the decay",
        ),
        Protocol(
            name="dsa",
            version=1,
            recipe=Recipe(**_SGD, **_HALF, epochs=1000, augment=DSA_ALL),
            source=_DSA,
            note="1000 epochs with differentiable augmentation, one kind of operation a batch",
        ),
        Protocol(
            name="dsa-compat",
            version=1,
            recipe=Recipe(**_SGD, **_HALF, **_QUIRKS, epochs=1000, augment=DSA_ALL),
            source=_DSA,
            note="as published code runs: 1001 epochs, decay after epoch 502, momentum lost at the decay",
        ),
        Protocol(
            name="label-worth",
            version=1,
            recipe=Recipe(**_SGD, **_QUARTERS, epochs=3000, augment=DSA_ALL + ",align_corners=true"),
            source=_LABEL,
            note="3000 epochs, rate x 0.3 at each quarter, DSA, cross-entropy with probability labels; last epoch, not the best on test",
        ),
        Protocol(
            name="label-worth-compat",
            version=1,
            recipe=Recipe(
                **_SGD, schedule="step", decay_at=(0.25, 0.5, 0.75, 0.9999), decay=0.3, epochs=3001, augment=DSA_ALL + ",align_corners=true"
            ),
            source=_LABEL,
            note="as published code runs: one epoch more; still the last epoch (the published numbers are the best of the test checks)",
        ),
        Protocol(
            name="label-worth-short",
            version=1,
            recipe=Recipe(**{**_SGD, "lr": 0.05}, **_QUARTERS, steps=500),
            source=_LABEL,
            note="for CPUs: 500 steps at rate 0.05, x 0.3 at each quarter, no augmentation; not comparable with published numbers",
        ),
        Protocol(
            name="audit",
            version=1,
            recipe=Recipe(optimizer="adam", lr=1e-3, weight_decay=0, batch_size=256, steps=2000, schedule="cosine"),
            source=_LEAK,
            note="to learn all that labels hold: Adam, 2000 steps, cosine to zero, no weight decay, no augmentation; not for comparing methods",
        ),
        Protocol(
            name="sre2l",
            version=1,
            recipe=Recipe(
                optimizer="adamw",
                lr=1e-3,
                weight_decay=0.01,
                batch_size=128,
                schedule="cosine",
                epochs=400,
                loss="kl",
                temperature=20,
                augment="crop_flip",
            ),
            source=_SRE2L,
            note="400 epochs, AdamW, cosine to zero, KL at temperature 20 without T^2, crop and flip; one stored label an image",
        ),
        Protocol(
            name="frepo",
            version=1,
            recipe=Recipe(
                optimizer="adam",
                lr=3e-4,
                weight_decay=0,
                batch_size=500,
                steps=1000,
                schedule="cosine",
                warmup_steps=500,
                loss="mse",
                augment=DSA_ALL,
            ),
            source=_FREPO,
            note="Adam, 1000 steps (published for 10 images; 2000 for 100), 500 of warm-up, then cosine to zero (published: to 1 %); squared error on labels "
            "minus 1/K; DSA, one kind of operation a batch, in place of the authors' own; the last weights, not their average",
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name; raises `OptionError` with the nearest name otherwise."""
    if name not in PROTOCOLS:
        raise OptionError(f"unknown protocol {name!r}; {nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]
