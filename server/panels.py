"""What the two dashboards show: titles, expressions and units, without a word of how they are drawn.

`server/grafana.py` makes Grafana's JSON of them, `simulations/report/board_page.py` a page without Grafana.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RUN = 'run=~"$run"'
"""Selects the runs that are chosen on a dashboard; `$run` is its variable."""

Unit = Literal["count", "ratio", "seconds", "days", "bytes", "bytes per second", "per second", "state"]


@dataclass(frozen=True)
class Query:
    """Give one expression, and what its series are called: labels in `{{…}}`."""

    expr: str
    legend: str = "{{run}}"
    bound: bool = False  # of a figure's error: drawn thin


@dataclass(frozen=True)
class Panel:
    """Describe a diagram over time; `text` says how to read it."""

    title: str
    unit: Unit
    queries: tuple[Query, ...]
    text: str = ""


@dataclass(frozen=True)
class Section:
    """Name some panels."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """Describe a dashboard; `uid` is its name in Grafana's addresses."""

    uid: str
    title: str
    text: str
    sections: tuple[Section, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Return all panels in their order."""
        return tuple(panel for section in self.sections for panel in section.panels)


def of(metric: str, legend: str = "{{run}}", labels: str = "") -> Query:
    """Query one of our metrics of the chosen runs."""
    return Query(f"fedcaptor_{metric}{{{RUN}{labels}}}", legend)


def estimate(title: str, metric: str, unit: Unit, text: str, label: str = "") -> Panel:
    """Show a private estimate, of each value of `label`, between itself minus and plus two deviations of its noise."""
    value, error = f"fedcaptor_{metric}{{{RUN}}}", f"fedcaptor_{metric}_stddev{{{RUN}}}"
    legend = f"{{{{run}}}} {{{{{label}}}}}" if label else "{{run}}"
    bounds = [Query(f"{value} {sign} 2 * {error}", f"{legend} {sign} 2σ", bound=True) for sign in "+-"]
    text = f"{text} The thin lines are two standard deviations of noise away."
    return Panel(title, unit, (Query(value, legend), *bounds), text)


FLEET = Board(
    "fedcaptor-fleet",
    "FedCAPTOR: fleet and savings",
    "What pruning saves, and what it costs in agreement. Private estimates stand between their bounds.",
    (
        Section(
            "Savings",
            (
                estimate("MACs of the phones' models", "fleet_macs_ratio", "ratio", "Full model: 100 %."),
                estimate("Modelled energy of answers", "fleet_energy_ratio", "ratio",
                         "MACs and what is moved between memories, by Yang, Chen & Sze, CVPR 2017, escalations "
                         "included: a model, no measurement."),
                estimate("Parameters of the phones' models", "fleet_parameters_ratio", "ratio", "Full model: 100 %."),
                Panel("Download of a phone in a round", "ratio", (of("fleet_download_ratio"),),
                      "Bytes of a delivery as a ratio of the full model's file."),
            ),
        ),
        Section(
            "Quality",
            (
                estimate("Agreement with the full model", "fleet_agreement_ratio", "ratio",
                         "Of the phones' own models, on own images. Phones have no labels: this is no accuracy."),
                estimate("Agreement of the clusters' models", "fleet_cluster_agreement_ratio", "ratio",
                         "Before the personal step."),
                estimate("Fallback", "fleet_fallback_ratio", "ratio", "Images that a larger model has to answer."),
                estimate("Phones with a submodel of their own", "fleet_personalised_ratio", "ratio",
                         "Others run their cluster's submodel, or the full model."),
                estimate("Phones whose habits drifted", "fleet_drifted_ratio", "ratio",
                         "Since they last personalised, when they took up the round's delivery: these did it again."),
            ),
        ),
        Section(
            "Phones",
            (
                Panel("Phones", "count",
                      (of("phones", "{{run}} in all"), of("phones_online", "{{run}} online"),
                       of("phones_enrolled", "{{run}} enrolled"), of("phones_needed", "{{run}} needed"),
                       of("phones_other_weights", "{{run}} with other weights")),
                      "Online: known to the SuperLink when the step in progress began. A sum needs so many replies."),
                estimate("Phones that report an outcome", "fleet_phones", "count", "All clusters together."),
                Panel("Phones by cluster", "count", (of("cluster_phones", "{{run}} {{cluster}}"),),
                      "Private estimates. A cluster keeps its name while it lasts."),
                Panel("Error of phones by cluster", "count", (of("cluster_phones_stddev", "{{run}} {{cluster}}"),),
                      "Standard deviation by noise, at most."),
            ),
        ),
        Section(
            "Photos",
            (
                estimate("Phones by look of their photos", "look_phones", "count",
                         "Of runs that adapt the base model to cameras and light.", "look"),
                Panel("Accuracy in each look", "ratio",
                      (of("look_accuracy_ratio", "{{run}} {{look}} {{model}}"),),
                      "Of the base model on the server's labelled images, re-rendered in the look. Where shipped and "
                      "adapted are one, the images did not bear an adaptation out."),
            ),
        ),
        Section(
            "Submodels",
            (
                Panel("MACs by cluster", "ratio", (of("cluster_macs_ratio", "{{run}} {{cluster}}"),),
                      "Of the delivered submodels, before the personal step."),
                Panel("MACs by device tier", "ratio", (of("tier_macs_ratio", "{{run}} {{tier}}"),)),
                Panel("Size by device tier", "bytes", (of("tier_submodel_bytes", "{{run}} {{tier}}"),)),
                Panel("Bytes sent", "bytes",
                      (Query(f"sum by (run, direction) (fedcaptor_message_bytes_total{{{RUN}}})",
                             "{{run}} {{direction}}"),),
                      "Payload since the run began, down to phones and up from them."),
            ),
        ),
    ),
)  # fmt: skip

SERVER = Board(
    "fedcaptor-server",
    "FedCAPTOR: privacy and server",
    "What was spent of the privacy budget, what runs are doing, and what goes wrong.",
    (
        Section(
            "Runs",
            (
                Panel("Status", "state", (Query(f"fedcaptor_run_status{{{RUN}}} == 1", "{{run}} {{status}}"),),
                      "Lost: no heartbeat for a minute, and no end."),
                Panel("Phase in progress", "state", (Query(f"fedcaptor_phase{{{RUN}}} == 1", "{{run}} {{phase}}"),)),
                Panel("Round", "count", (of("round"), of("rounds_planned", "{{run}} planned"))),
                Panel("Phones asked and replied", "count",
                      (of("phase_asked_phones", "{{run}} asked"), of("phase_replied_phones", "{{run}} replied")),
                      "In the step in progress."),
                Panel("Age of the heartbeat", "seconds",
                      (Query(f"time() - fedcaptor_run_heartbeat_timestamp_seconds{{{RUN}}} "
                             f'and on (run) fedcaptor_run_status{{{RUN}, status="running"}} == 1'),)),
                Panel("Duration of rounds", "seconds",
                      tuple(Query(f"histogram_quantile({q}, sum by (run, le) "
                                  f"(fedcaptor_round_duration_seconds_bucket{{{RUN}}}))", f"{{{{run}}}} {name}")
                            for q, name in ((0.5, "median"), (0.95, "95 %"))),
                      "From buckets that double: right within a factor of two."),
                Panel("Mean duration of phases", "seconds",
                      (Query(f"fedcaptor_phase_duration_seconds_sum{{{RUN}}} / "
                             f"fedcaptor_phase_duration_seconds_count{{{RUN}}}", "{{run}} {{phase}}"),)),
            ),
        ),
        Section(
            "Privacy",
            (
                Panel("ε", "count",
                      (of("privacy_epsilon", "{{run}} spent"), of("privacy_server_epsilon", "{{run}} cheating server"),
                       of("privacy_epsilon_budget", "{{run}} budget"))),
                Panel("Budget used", "ratio", (Query(f"run:fedcaptor_privacy_used:ratio{{{RUN}}}"),),
                      "In ρ, which adds up over sums."),
                Panel("ρ by kind of sum", "count", (of("privacy_rho", "{{run}} {{sum}}"),)),
                Panel("Noise in an entry of a sum", "count", (of("privacy_noise_stddev", "{{run}} {{sum}}"),),
                      "Standard deviation, in units of the sum's entries."),
                Panel("Sums that came to nothing", "count",
                      (Query(f"sum by (run, reason) (fedcaptor_lost_sums_total{{{RUN}}})", "{{run}} {{reason}}"),)),
            ),
        ),
        Section(
            "Messages",
            (
                Panel("Messages by result", "count",
                      (Query(f"sum by (run, result) (fedcaptor_messages_total{{{RUN}}}) > 0", "{{run}} {{result}}"),),
                      "Messages, not phones: a masked sum has six to each."),
                Panel("Dropout", "ratio",
                      (Query(f"run:fedcaptor_dropout:ratio{{{RUN}}}"),
                       Query(f"run:fedcaptor_allowed_dropout:ratio{{{RUN}}}", "{{run}} allowed", bound=True)),
                      "Phones that did not answer a phase to its end."),
                Panel("Refused replies", "count",
                      (Query(f"sum by (run, reason) (fedcaptor_refused_replies_total{{{RUN}}}) > 0",
                             "{{run}} {{reason}}"),)),
                Panel("Bytes by step", "bytes",
                      (Query(f"sum by (run, step) (fedcaptor_message_bytes_total{{{RUN}}})", "{{run}} {{step}}"),),
                      "Payload in both directions."),
            ),
        ),
        Section(
            "Processes",
            (
                Panel("Memory", "bytes",
                      (of("server_peak_memory_bytes", "{{run}} server app, peak"),
                       Query('process_resident_memory_bytes{job=~"fedcaptor.*"}', "{{job}}"))),
                Panel("Processor", "per second",
                      (Query(f"rate(fedcaptor_server_cpu_seconds_total{{{RUN}}}[$__rate_interval])"),),
                      "Cores that the server app keeps busy."),
                Panel("Days until certificates expire", "days",
                      (Query("(fedcaptor_certificate_expiry_timestamp_seconds - time()) / 86400", "{{certificate}}"),)),
                Panel("Catalogue: requests", "per second",
                      (Query("sum by (method, code) (rate(fedcaptor_catalogue_requests_total[$__rate_interval]))",
                             "{{method}} {{code}}"),)),
                Panel("Catalogue: bytes", "bytes per second",
                      (Query("sum (rate(fedcaptor_catalogue_sent_bytes_total[$__rate_interval]))", "sent"),)),
                Panel("Catalogue: resumed and failed", "per second",
                      (Query("sum (rate(fedcaptor_catalogue_resumes_total[$__rate_interval]))", "resumed"),
                       Query("sum (rate(fedcaptor_catalogue_failures_total[$__rate_interval]))", "failed"))),
            ),
        ),
    ),
)  # fmt: skip

BOARDS = (FLEET, SERVER)
