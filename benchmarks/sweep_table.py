"""The table of docs/many-machines.md, from what the benchmarks of sweeps keep with `--record`.

`python docs/measured_numbers.py` writes it into the page.
"""

from typing import Any


def rows(kept: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """What was done, what was seen, and the command, of each benchmark."""
    cluster, work, flips = kept["cluster"], kept["work"], kept["flips"]
    large, plan, hostile = kept["large"], kept["plan"], kept["hostile"]
    (few, little), (many, much) = plan["peak_mebibytes"].items()
    bytes_same = {True: "every array is byte-equal", False: "ARRAYS DIFFER"}
    return [
        (
            f"Two workers and a driver. SIGKILL of a worker {cluster['killed_workers']} times and "
            f"of the driver {cluster['killed_drivers']} times during {cluster['chunks']} chunks "
            f"with {cluster['stiff_lanes']} stiff lanes",
            f"{bytes_same[cluster['same_bytes']]} to one uninterrupted process; "
            f"{cluster['chunks_begun_again']} chunks were begun again, at most "
            f"{cluster['most_in_flight_at_kills']} were in flight",
            cluster["command"],
        ),
        (
            f"Two shells with `work`. SIGKILL of one of them {work['killed_shells']} times during "
            f"{work['chunks']} chunks",
            f"{bytes_same[work['same_bytes']]}; {work['chunks_begun_again']} chunks were begun "
            f"again, at most {work['most_in_flight_at_kills']} were in flight",
            work["command"],
        ),
        (
            f"{flips['flips']} single-bit flips in the {flips['files']} files of a store",
            f"`verify` found {flips['found']}",
            flips["command"],
        ),
        (
            f"{hostile['cases']} stores that try to run code, or to read or write outside",
            f"{hostile['refused']} ran nothing and touched nothing outside",
            hostile["command"],
        ),
        (
            f"{large['lanes']:,} lanes (d = 8, n = 3)",
            f"{large['cpu_seconds']:.0f} CPU seconds, {large['times_bare_flows']:.2f} times the "
            f"bare flows (median of {len(large['turns'])} turns), {large['files']} files, "
            f"{large['mebibytes']:.0f} MiB, opened in {large['opening_seconds']:.2f} s",
            large["command"],
        ),
        (
            f"`--dry-run` of {int(few):,} and of {int(many):,} lanes",
            f"peak memory {little} and {much} MiB",
            plan["command"],
        ),
    ]


def table(kept: dict[str, dict[str, Any]]) -> str:
    """The table as Markdown; `kept` is the content of docs/measured/sweeps.json."""
    lines = ["| what was done | what was seen | command |", "|---|---|---|"]
    lines += [f"| {done} | {seen} | `{command}` |" for done, seen, command in rows(kept)]
    machine = kept["large"]["machine"]
    about = f"Two cores of an {machine['processor']} processor, jax {machine['versions']['jax']}."
    return "\n".join([*lines, "", about, ""])
