"""The page at `/`: the report for people, without scripts or anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from string import Template

from stream.monitor.report import Report, Row
from stream.monitor.windows import Group
from stream.tables import age, instant, printable

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="10">
<title>Innerloop monitor</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem }
th, td { border-bottom: 1px solid #ccc; padding: 0.2rem 0.8rem 0.2rem 0; text-align: left }
.on { color: #b00020; font-weight: bold }
</style></head><body>
<h1>Innerloop monitor</h1>
<p>$summary</p>
$body
</body></html>
""")


def page(report: Report, window_minutes: float, k: int) -> str:
    """The report as HTML."""
    parts = [
        _table("Alarms", ("alarm", "why"), _alarms(report)),
        *(_figures(by, report.figures.get(by, []), k) for by in Group._fields),
        _table("Lists", ("figure", "value"), _lists(report)),
        _table("Learning", ("figure", "value"), _learning(report)),
        _table("Lag", ("partition", "messages", "seconds"), _lag(report)),
        _table("Retraining", ("figure", "value"), _retraining(report)),
    ]
    span = min(60 * window_minutes, report.at - report.started)
    summary = (
        f"{instant(round(1000 * report.at))}: the latest {age(span)}, the first {k} places of "
        f"every list, {report.share:.4g} of the users, {report.workers} workers. "
        '<a href="/status">JSON</a> <a href="/metrics">Prometheus</a>'
    )
    return _PAGE.substitute(summary=summary, body="\n".join(parts))


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    names = "".join(f"<th>{name}</th>" for name in head)
    return f"<h2>{title}</h2><table><tr>{names}</tr>{''.join(cells)}</table>"


def _alarms(report: Report) -> Iterable[tuple[str, str]]:
    for alarm, why in report.alarms.items():
        yield alarm.value, f'<span class="on">{_safe(why)}</span>' if why else "off"


def _figures(by: str, rows: Sequence[Row], k: int) -> str:
    head = (by, "lists", "judged", f"hit rate at {k}", f"CTR at {k}", "CTR by", "churn")
    cells = [
        (
            _safe(row.name),
            str(row.lists),
            str(row.judged),
            _number(row.hit_rate),
            _number(row.ctr),
            row.ctr_by,
            _number(row.churn),
        )
        for row in rows
    ]
    return _table(f"By {by}", head, cells)


def _lists(report: Report) -> Iterable[tuple[str, str]]:
    for percent, seconds in report.freshness.items():
        yield f"freshness, {percent}%", "-" if seconds is None else f"{seconds:.3f} s"
    yield "coverage", f"{report.items_listed} of {report.items} items, {_number(report.coverage)}"
    for of, bits in report.drift.items():
        yield f"drift by {of}", "-" if bits is None else f"{bits:.4f} bits"


def _learning(report: Report) -> Iterable[tuple[str, str]]:
    found = report.learning
    yield "verdict", found.verdict.value
    for name, kind in (("adapted", found.adapted), ("control", found.control)):
        yield name, f"{kind.rate:.4f} of {kind.judged} by {kind.users} users"
    if min(found.adapted.users, found.control.users) > 1:
        yield "gain", f"{found.gain:+.4f}, 95% interval {found.low:+.4f} to {found.high:+.4f}"


def _lag(report: Report) -> Iterable[tuple[str, str, str]]:
    for partition, lag in sorted(report.lags.items()):
        yield str(partition), str(lag.messages), f"{lag.seconds:.1f}"


def _retraining(report: Report) -> Iterable[tuple[str, str]]:
    run = report.run
    if run is None:
        yield "newest run", "none"
        return
    yield "newest run", f"{_safe(run.run)}: {run.status}"
    yield "last line", _safe(run.verdict)
    yield "output", _safe(run.log)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _safe(text: str | None) -> str:
    return escape(printable(text))
