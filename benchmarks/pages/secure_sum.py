"""Secure sums beside plain ones and Flower's primitives: a row a cohort."""

from __future__ import annotations

from benchmarks.pages.section import Section
from benchmarks.record import Record, Row
from benchmarks.tables import table

SIZES = (
    "",
    "holders",
    "threshold",
    "masks a phone",
    "fewest honest phones in a sum",
    "bits an entry",
    "up, kB",
    "of the plain vector",
    "down, kB",
    "sum exact",
)
TIMES = (
    "",
    "phone, ms",
    "packing and key agreements alone, ms",
    "ratio",
    "Flower's, ms",
    "ratio",
    "Flower's at threshold 2, ms",
    "server, s",
    "Flower's, s",
    "ratio",
    "Flower's at threshold 2, s",
    "plain server, s",
    "server's peak, MB",
)
INTRODUCTION = """\
One masked sum of the protocol in `common/secure`, all its steps, against a server that may lie while at most
{corrupted:.0%} of the phones side with it. Holders and threshold are computed for failures of 2⁻⁴⁰ (secrecy) and 2⁻²⁰
(a sum that cannot be opened). The dropped phones leave at the worst moment: their shares are out, their vector is not
sent. An entry has as few bits as a sum with noise needs (multiplier {noise_multiplier:g}). *Up* and *down* are the
bytes of all messages of a phone that stays to the end; *of the plain vector*: upload over the packed vector alone."""
EXPLANATION = """\
Processor seconds, one thread. Every phone ran all its steps, one after another; the server ran in a process of its own
and its peak is that process's, libraries included. The check of the announced graph, a few milliseconds for a thousand
phones, is remembered by a process, so one phone of all was counted with it. *Packing and key agreements alone*: what no
protocol of this kind can leave out. *Flower's*: the primitives of its SecAgg+ (Flower {flower}), on vectors of the same
length and modulus, with the same number of holders and the same threshold, as its client mod and its workflow call
them, without quantisation. They were timed for {timed}, one survivor and one dropped phone and scaled to the cohort.
Most of them go to its Shamir sharing, in pure Python; *at threshold 2* shows what is left with hardly any of it.
Flower's graph has one mask a holder; ours has one for each holder and for each phone that chose it."""


def render(record: Record) -> Section:
    """Two tables: what is sent, and how long it takes."""
    phones = sorted({row["flower_phones_timed"] for row in record.rows})
    timed = f"{' or '.join(map(str, phones))} phone{'s' if phones != [1] else ''}"
    text = "\n\n".join(
        (
            INTRODUCTION.format(**record.settings),
            table(SIZES, map(_sizes, record.rows)),
            EXPLANATION.format(**record.settings, timed=timed),
            table(TIMES, map(_times, record.rows)),
        )
    )
    return Section("Secure sums", text)


def _name(row: Row) -> str:
    return f"{row['phones']:,} phones, {row['length']:,} entries, {row['dropout']:.0%} dropped"


def _sizes(row: Row) -> list[str]:
    return [
        _name(row),
        f"{row['neighbours']}",
        f"{row['threshold']}",
        f"{row['masks']:.0f}",
        f"{row['least_honest']}",
        f"{row['bits_per_entry']}",
        f"{row['upload_bytes'] / 1e3:.0f}",
        f"{row['expansion']:.2f}",
        f"{row['download_bytes'] / 1e3:.0f}",
        "yes" if row["exact"] else "**no**",
    ]


def _times(row: Row) -> list[str]:
    return [
        _name(row),
        f"{row['phone_ms']:.0f}",
        f"{row['serialise_ms']:.0f}",
        f"{row['phone_ms'] / row['serialise_ms']:.1f}",
        f"{row['flower_phone_ms']:.0f}",
        f"{row['flower_phone_ms'] / row['phone_ms']:.0f}",
        f"{row['flower_phone_unshared_ms']:.0f}",
        f"{row['server_seconds']:.1f}",
        f"{row['flower_server_seconds']:.0f}",
        f"{row['flower_server_seconds'] / row['server_seconds']:.0f}",
        f"{row['flower_server_unshared_seconds']:.0f}",
        f"{row['plain_server_seconds']:.2f}",
        f"{row['peak_rss_bytes'] / 1e6:.0f}",
    ]
