"""Note the outcome of a phone's last personalisation, in one file of its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedcaptor.client.folder import CLUSTER_FILE, OUTCOME_FILE, SUBMODEL_FILE
from fedcaptor.common.config import Precision
from fedcaptor.common.errors import StateError
from fedcaptor.common.files import replacing

Kind = Literal["personal", "cluster", "full"]
Ratio = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Outcome(BaseModel):
    """Note how the last personalisation ended.

    `kind`: "personal", "cluster" or "full" (no own submodel: the full model answers). `classes`: the owner's.
    `prior` [C]: how likely the owner meets each class. `agreement`: with the full model on check images, and
    `agreement_cluster` that of the cluster's submodel. `threshold`: out-of-set score below which an image is escalated,
    None for none; `escalated`: share of own images that are. `cluster`: the nearest centroid, -1 without any. `macs`,
    `parameters`: over those of the full model. `plan`, `digest`, `file`: of the own submodel, `larger`,
    `larger_digest`, `larger_file`: of the cluster's, None without it; earlier releases wrote no name of a file.
    `base_fetches`: times that the full model was downloaded again. `outputs`: labels of the own submodel's outputs, and
    `precision` what it computes in. `drifted`: habits had drifted since the last personalisation when the phone took
    up its newest delivery; False at its first one, and in notes of earlier releases.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    classes: tuple[int, ...]
    prior: tuple[float, ...]
    agreement: Share
    agreement_cluster: Share
    threshold: float | None
    escalated: Share
    cluster: int
    macs: Ratio = 1.0
    parameters: Ratio = 1.0
    plan: str | None = None
    digest: str | None = None
    larger: str | None = None
    larger_digest: str | None = None
    base_fetches: int = Field(0, ge=0)
    file: str | None = SUBMODEL_FILE
    larger_file: str | None = CLUSTER_FILE
    outputs: tuple[int, ...] = ()
    precision: Precision = "float32"
    drifted: bool = False

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the note in a phone's folder, None before its first personalisation.

        Raises StateError on a damaged file.
        """
        path = folder / OUTCOME_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise StateError(
                f"{path} is damaged ({where + ': ' if where else ''}{first['msg']}): delete it, the phone "
                "personalises again"
            ) from None

    def figures(self) -> dict[str, float]:
        """Return what a sum over phones may ask for, each in [0, 1]."""
        return {
            "agreement_cluster": self.agreement_cluster,
            "agreement": self.agreement,
            "macs": self.macs,
            "parameters": self.parameters,
            "escalated": self.escalated,
            "personal": float(self.kind == "personal"),
            "drifted": float(self.drifted),
        }

    def write(self, folder: Path) -> None:
        """Replace the note in a phone's folder, for its owner's eyes alone."""
        with replacing(folder / OUTCOME_FILE, private=True) as temporary:
            temporary.write_text(json.dumps(self.model_dump()))
