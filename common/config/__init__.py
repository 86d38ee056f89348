"""One configuration for simulation and deployment: sections of a TOML file, each key documented where it is defined.

`schema` has the keys, `loading` reads them, `wording` tells what is wrong with them, `digest` names them, `files`
writes a phone's part and `reference` the page of all.
"""

from fedcaptor.common.config.files import phone_config
from fedcaptor.common.config.loading import load_config, parse
from fedcaptor.common.config.reference import reference_page
from fedcaptor.common.config.schema.base import Positive, Ratio, Reader, Section, Share
from fedcaptor.common.config.schema.configuration import MARKS, SMALL_COHORTS, Config
from fedcaptor.common.config.schema.deployment import DeploymentSettings
from fedcaptor.common.config.schema.device import DeviceSettings
from fedcaptor.common.config.schema.phone import (
    MAX_TIERS,
    TIER_NAME,
    Delivery,
    Fallback,
    Personal,
    Precision,
    Tier,
    Usage,
)
from fedcaptor.common.config.schema.privacy import Privacy
from fedcaptor.common.config.schema.run import Data, Model, Rounds, Run, Testing
from fedcaptor.common.config.schema.server import Clusters, Domain, Planner, Scores, Visualise
from fedcaptor.common.config.schema.simulated import Faults, Look, Population

__all__ = [
    "MARKS",
    "MAX_TIERS",
    "SMALL_COHORTS",
    "TIER_NAME",
    "Clusters",
    "Config",
    "Data",
    "Delivery",
    "DeploymentSettings",
    "DeviceSettings",
    "Domain",
    "Fallback",
    "Faults",
    "Look",
    "Model",
    "Personal",
    "Planner",
    "Population",
    "Positive",
    "Precision",
    "Privacy",
    "Ratio",
    "Reader",
    "Rounds",
    "Run",
    "Scores",
    "Section",
    "Share",
    "Testing",
    "Tier",
    "Usage",
    "Visualise",
    "load_config",
    "parse",
    "phone_config",
    "reference_page",
]
