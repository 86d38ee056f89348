"""Sections of a run as a whole: seed and rounds, data, model, messages, tests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedcaptor.common.config.schema.base import PHONE, SERVER, SIMULATION, Positive, Section


class Run(Section):
    seed: Annotated[int, SERVER, SIMULATION] = Field(
        0, ge=0, description="Seed of the server's random choices and of everything that a simulation draws."
    )
    rounds: Annotated[int, SERVER, SIMULATION] = Field(
        1,
        ge=0,
        le=1000,
        description="Personalisation rounds; 0 = no last one, which needs `privacy.rounds_per_period`.",
    )
    engine: Annotated[Literal["torch", "onnx"], SIMULATION] = Field(
        "torch",
        description="What runs networks on simulated phones: PyTorch, or ONNX Runtime, which does not tune submodels. "
        "Their results differ by rounding.",
    )


class Data(Section):
    source: Annotated[str, SERVER, SIMULATION] = Field(
        "embedded",
        description="`embedded`, an `.npz` file, a folder of class folders, `torchvision:NAME`, or "
        "`package.module:function`.",
    )
    reference: Annotated[str, SERVER, SIMULATION] = Field(
        "",
        description="The server's own images, where they are of another source than `source`, such as what "
        "`fedcaptor synthesise` writes for servers without any.",
    )


class Model(Section):
    name: Annotated[str, SERVER, SIMULATION] = Field(
        "small-cnn", description="Registered model, or `package.module:factory`."
    )
    weights: Annotated[str, SERVER, SIMULATION] = Field(
        "", description="Weights as safetensors; empty = those shipped for the embedded data."
    )


class Rounds(Section):
    """How the server asks phones and waits for them."""

    cohort: Annotated[int, SERVER] = Field(0, ge=0, description="Phones asked in a sum; 0 = all.")
    deadline: Annotated[Positive, SERVER] = Field(3600.0, description="Seconds that the server waits for replies.")
    attempts: Annotated[int, SERVER] = Field(
        3, ge=1, le=100, description="Times that a sum with too few replies is asked again."
    )
    grace: Annotated[float, SERVER] = Field(
        60.0,
        ge=0,
        description="Devices: seconds that a step still waits for the others once all but `privacy.dropout` of the "
        "phones have answered; a delivery waits for `deadline` instead. Phones that are off longer miss that sum. "
        "Simulated phones are waited for as long as `deadline` and `attempts` say.",
    )
    poll: Annotated[Positive, SERVER] = Field(0.5, description="Seconds between two looks for replies.")


class Testing(Section):
    small_cohorts: Annotated[bool, SERVER, PHONE, SIMULATION] = Field(
        False,
        description="Lifts the floor of 20 under `min_cohort`; marked in every output, "
        "and not served by an exporter that other machines can reach.",
    )
