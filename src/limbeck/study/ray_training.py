"""One expert trained by several workers of a Ray cluster, each on its part of every batch (Ray Train's `TorchTrainer` starts them and their process group)."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from limbeck import store
from limbeck.cache import Cache
from limbeck.errors import LimbeckError, OptionError
from limbeck.experts.trajectory import Trajectory, find_trajectory
from limbeck.study.artefacts import Artefacts
from limbeck.study.tasks import ExpertTask, Premises, Workplace
from limbeck.train.share import Share


def train_together(settings: Mapping[str, Any], work: Workplace) -> Trajectory:
    """The expert of an `expert` task whose settings name several workers. They go through the one training loop (`limbeck.train.share.Share`), so the expert is that
    of one worker up to the order of additions; an interrupted one goes on where its last snapshot was kept. Starts a local Ray where none runs."""
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except Exception:
        raise OptionError(
            "experts with several workers need the 'ray' package with Ray Train; pip install 'limbeck[ray]', or use workers = 1"
        ) from None
    wanted = needs(settings)
    if not ray.is_initialized():
        start(ray, address="local", num_cpus=wanted["CPU"], include_dashboard=False)
        if words := lacking(ray, wanted):
            raise OptionError(f"an expert that several workers train together needs {words} here; use fewer workers in the study, or a Ray cluster")
    gpu = "GPU" in wanted
    told = work.artefacts.file("ray-train", "").resolve()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"settings": dict(settings), "premises": vars(work.premises), "told": str(told), "folder": os.getcwd()},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=settings["workers"], use_gpu=gpu),
        run_config=RunConfig(storage_path=str(told)),
    )
    try:
        trainer.fit()
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise LimbeckError(f"training on {settings['workers']} workers failed: {reason}; mend that, and run the study again") from None
    made = find_trajectory(work.artefacts.cache, _key_file(told, settings).read_text())
    if made is None:
        raise LimbeckError(f"the workers wrote no expert into {str(work.artefacts.cache.root)!r}; let all machines share that folder (--store)")
    return made


def needs(settings: Mapping[str, Any]) -> dict[str, int]:
    """What the workers of an `expert` task take of a cluster: a core each, one for whoever leads them, and a GPU each where they use any."""
    workers = settings["workers"]
    return {"CPU": workers + 1} | ({"GPU": workers} if settings["plan"]["device"].startswith("cuda") else {})


def lacking(ray: Any, wanted: Mapping[str, int]) -> str:
    """``2 GPU, of which there are 1`` for what a cluster has less of than is wanted; empty where there is enough."""
    there = ray.cluster_resources()
    return " and ".join(f"{count} {name}, of which there are {there.get(name, 0):g}" for name, count in wanted.items() if there.get(name, 0) < count)


def start(ray: Any, **given: Any) -> None:
    """Starts, or joins, Ray without its chatter."""
    ray.init(**given, log_to_driver=False, logging_level="ERROR")


def _worker(given: dict[str, Any]) -> None:
    """What each worker does; the first one says under which key the expert lies."""
    with suppress(OSError):  # Ray Train starts workers in a folder of its own; a source may be named from the study's, where this machine has it
        os.chdir(given["folder"])
    premises = Premises(**given["premises"])
    work = Workplace(premises, Artefacts(Cache(Path(premises.cache)), premises.url))
    share = Share.of_process_group()
    made = ExpertTask.trajectory(given["settings"], work, share)
    if share.rank == 0:
        _key_file(Path(given["told"]), given["settings"]).write_text(made.key)


def _key_file(folder: Path, settings: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{store.digest_of(dict(settings))[:32]}.key"
