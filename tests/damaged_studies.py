"""Kinds of damage to a database of trials, done by SQL to a good database.

The good database has two Optuna studies with four completed trials each; the first one is study 1. Each kind has its
outcome: "refused" and words of the error, "left out" and words of the reason, or nothing.
"""

# ruff: noqa: E501, S608  statements and outcomes are side by side; the statements are constants of the tests

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

REFUSED, LEFT_OUT, NOTHING = "refused", "left out", "nothing"

# The first trial of the first study.
_FIRST = "(select min(trial_id) from trials where study_id = 1)"
_DEEP = "[" * 100_000 + "]" * 100_000


@dataclass(frozen=True)
class Damage:
    """One kind of damage: the function that damages the file at a path, the outcome, and words of its message."""

    name: str
    do: Callable[[Path], None]
    becomes: str
    words: str = ""

    def __str__(self) -> str:
        return self.name


def _sql(*statements: str, **named: object) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            for statement in statements:
                database.execute(statement, named)

    return do


def _set(column: str, value: str, table: str = "trials", where: str = f"trial_id = {_FIRST}") -> Callable[[Path], None]:
    return _sql(f"update {table} set {column} = {value} where {where}")


def _rebuilt(table: str, columns: str, *statements: str) -> Callable[[Path], None]:
    """Create the same table again with these columns and without its constraints."""
    names = ", ".join(column.split()[0] for column in columns.split(", "))
    return _sql(
        f"alter table {table} rename to old_{table}",
        f"create table {table} ({columns})",
        f"insert into {table} select {names} from old_{table}",
        f"drop table old_{table}",
        *statements,
    )


def _score(value: object) -> Callable[[Path], None]:
    """Change the similarities by block of the first trial."""
    text = value if isinstance(value, str) else json.dumps(value)
    return _sql(
        f"update trial_user_attributes set value_json = :text where key = 'block_scores' and trial_id = {_FIRST}",
        text=text,
    )


def _range(text: str) -> Callable[[Path], None]:
    return _sql(f"update trial_params set distribution_json = :text where trial_id = {_FIRST}", text=text)


def _attribute(table: str, key: str, text: str) -> Callable[[Path], None]:
    owner = "trial_id" if table.startswith("trial") else "study_id"
    which = _FIRST if owner == "trial_id" else "1"
    return _sql(
        f"delete from {table} where {owner} = {which} and key = :key",
        f"insert into {table} ({owner}, key, value_json) values ({which}, :key, :text)",
        key=key, text=text,
    )  # fmt: skip


def _cut(share: float) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        os.truncate(path, int(path.stat().st_size * share))

    return do


def _overwritten(start: int, length: int) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(start)
            file.write(b"\xa5" * length)

    return do


def _beside(ending: str, content: bytes) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        path.with_name(path.name + ending).write_bytes(content)

    return do


def _waiting(path: Path) -> None:
    """Change a trial's state in another journal mode, so that the change has not reached the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("pragma wal_autocheckpoint = 0")
        database.execute("update trials set state = 'PRUNED' where trial_id = 1")
        kept = {name: path.with_name(path.name + name).read_bytes() for name in ("", "-wal")}
    for name, content in kept.items():
        path.with_name(path.name + name).write_bytes(content)


_FLOAT = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": %s, "log": false}}'
_VALUE = f"trial_id = {_FIRST}"

DAMAGES = (
    # States and values.
    Damage("state unknown", _rebuilt("trials", "trial_id integer primary key, number integer, study_id integer, state text, datetime_start datetime, datetime_complete datetime", f"update trials set state = 'BANANA' where trial_id = {_FIRST}"), REFUSED, "BANANA"),
    Damage("state null", _rebuilt("trials", "trial_id integer primary key, number integer, study_id integer, state text, datetime_start datetime, datetime_complete datetime", f"update trials set state = null where trial_id = {_FIRST}"), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("state a number", _rebuilt("trials", "trial_id integer primary key, number integer, study_id integer, state integer, datetime_start datetime, datetime_complete datetime", f"update trials set state = 7 where trial_id = {_FIRST}"), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("state pruned", _set("state", "'PRUNED'"), LEFT_OUT, "pruned"),
    Damage("state waiting", _set("state", "'WAITING'"), NOTHING),
    Damage("completed without values", _sql(f"delete from trial_values where {_VALUE}"), LEFT_OUT, "its value is not one similarity"),
    Damage("all without values", _sql("delete from trial_values"), LEFT_OUT, "its value is not one similarity"),
    Damage("failed with values", _set("state", "'FAIL'"), LEFT_OUT, "a value, but is not completed"),
    Damage("running with values", _sql(f"update trials set state = 'RUNNING', datetime_complete = null where {_VALUE}"), NOTHING),
    Damage("running, and ended", _sql(f"update trials set state = 'RUNNING' where {_VALUE}", f"delete from trial_values where {_VALUE}"), NOTHING),
    Damage("two values", _sql(f"insert into trial_values (trial_id, objective, value, value_type) values ({_FIRST}, 1, 0.5, 'FINITE')"), LEFT_OUT, "its value is not one similarity"),
    Damage("value of another objective", _set("objective", "5", "trial_values", _VALUE), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("value null", _set("value", "null", "trial_values", _VALUE), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("value infinite", _sql(f"update trial_values set value = null, value_type = 'INF_POS' where {_VALUE}"), LEFT_OUT, "its value is not one similarity"),
    Damage("value infinite and down", _sql(f"update trial_values set value = null, value_type = 'INF_NEG' where {_VALUE}"), LEFT_OUT, "its value is not one similarity"),
    Damage("value's type unknown", _rebuilt("trial_values", "trial_value_id integer primary key, trial_id integer, objective integer, value float, value_type text", "update trial_values set value_type = 'HUGE'"), REFUSED, "HUGE"),
    Damage("value a text", _set("value", "'much'", "trial_values", _VALUE), LEFT_OUT, "its value is not one similarity"),
    Damage("value huge", _set("value", "1e300", "trial_values", _VALUE), LEFT_OUT, "its value is not one similarity"),
    Damage("value 2", _set("value", "2", "trial_values", _VALUE), LEFT_OUT, "its value is not one similarity"),
    Damage("value made better", _set("value", "0.999999", "trial_values", _VALUE), LEFT_OUT, "not the mean"),
    Damage("values doubled", _rebuilt("trial_values", "trial_value_id integer primary key, trial_id integer, objective integer, value float, value_type text", f"insert into trial_values select trial_value_id + 100, trial_id, objective, value, value_type from trial_values where {_VALUE}"), LEFT_OUT, "its value is not one similarity"),
    # Similarities by block.
    Damage("no block scores", _sql("delete from trial_user_attributes where key = 'block_scores'"), LEFT_OUT, "not those of this search's blocks"),
    Damage("block scores of other blocks", _score({"IN01": 0.5, "IN02": 0.5}), LEFT_OUT, "not those of this search's blocks"),
    Damage("block scores of one block more", _score({"OUT03": 0.1, "OUT06": 0.1, "M00": 0.1}), LEFT_OUT, "not those of this search's blocks"),
    Damage("block scores no numbers", _score({"OUT03": "high", "OUT06": [1]}), LEFT_OUT, "is not a number in"),
    Damage("block scores true", _score({"OUT03": True, "OUT06": True}), LEFT_OUT, "is not a number in"),
    Damage("block scores not finite", _score('{"OUT03": NaN, "OUT06": Infinity}'), LEFT_OUT, "is not a number in"),
    Damage("block scores huge", _score('{"OUT03": 1' + "0" * 400 + ', "OUT06": 1}'), LEFT_OUT, "is not a number in"),
    Damage("block scores none at all", _score({"OUT03": None, "OUT06": None}), LEFT_OUT, "is not a number in"),
    Damage("block scores of one block less", _sql(f"update trial_user_attributes set value_json = '{{\"OUT03\": 0.9}}' where key = 'block_scores' and trial_id = {_FIRST}", f"update trial_values set value = 0.9 where {_VALUE}"), LEFT_OUT, "not those of this search's blocks"),
    Damage("distance negative", _attribute("trial_user_attributes", "distance", "-5"), NOTHING),
    Damage("block scores a list", _score([1, 2]), LEFT_OUT, "not those of this search's blocks"),
    Damage("block scores a number", _score(3), LEFT_OUT, "not those of this search's blocks"),
    Damage("block scores no JSON", _score("{"), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("block scores deep", _score(_DEEP), REFUSED, "trial 0 of 's/A' cannot be read"),
    # Parameters and their ranges.
    Damage("no parameters", _sql(f"delete from trial_params where {_VALUE}"), LEFT_OUT, "parameters are not those"),
    Damage("one parameter less", _sql(f"delete from trial_params where param_id = (select min(param_id) from trial_params where {_VALUE})"), LEFT_OUT, "parameters are not those"),
    Damage("one parameter more", _sql(f"insert into trial_params (trial_id, param_name, param_value, distribution_json) select trial_id, 'more', param_value, distribution_json from trial_params where {_VALUE} limit 1"), LEFT_OUT, "parameters are not those"),
    Damage("parameters renamed", _sql("update trial_params set param_name = 'p' || param_id"), LEFT_OUT, "parameters are not those"),
    Damage("parameter null", _set("param_value", "null", "trial_params", _VALUE), LEFT_OUT, "not a number in its range"),
    Damage("parameter a text", _set("param_value", "'half'", "trial_params", _VALUE), LEFT_OUT, "not a number in its range"),
    Damage("parameter out of range", _set("param_value", "-3", "trial_params", _VALUE), LEFT_OUT, "not a number in its range"),
    Damage("parameter infinite", _set("param_value", "9e999", "trial_params", _VALUE), LEFT_OUT, "not a number in its range"),
    Damage("parameters huge", _set("param_value", "1e300", "trial_params", "1"), LEFT_OUT, "not a number in its range"),
    Damage("range no JSON", _range("FloatDistribution(0, 1)"), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("range null", _range("null"), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("range empty", _range("{}"), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("range of another kind", _range('{"name": "BananaDistribution", "attributes": {}}'), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("range upside down", _range(_FLOAT % "-1.0"), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("range wider", _range(_FLOAT % "2.0"), LEFT_OUT, "another range"),
    Damage("range without end", _range(_FLOAT % "1e999"), LEFT_OUT, "another range"),
    Damage("range not a number", _range(_FLOAT % "NaN"), LEFT_OUT, "another range"),
    Damage("range of texts", _range(_FLOAT % '"high"'), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("range with other fields", _range('{"name": "FloatDistribution", "attributes": {"lowest": 0}}'), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("range of one number", _sql(f"update trial_params set param_value = 0.25, distribution_json = :text where {_VALUE}", text='{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.25, "high": 0.25, "log": false}}'), NOTHING),
    Damage("range of another number", _range('{"name": "FloatDistribution", "attributes": {"step": null, "low": 7.0, "high": 7.0, "log": false}}'), LEFT_OUT, "another range"),
    Damage("range logarithmic", _range('{"name": "FloatDistribution", "attributes": {"low": 0.1, "high": 1, "log": true, "step": null}}'), LEFT_OUT, "another range"),
    Damage("range of whole numbers", _range('{"name": "IntDistribution", "attributes": {"low": 0, "high": 1, "step": 1, "log": false}}'), LEFT_OUT, "another range"),
    Damage("range of choices", _sql(f"update trial_params set param_value = 0, distribution_json = :text where {_VALUE}", text='{"name": "CategoricalDistribution", "attributes": {"choices": ["a", 1, null]}}'), LEFT_OUT, "another range"),
    Damage("range of choices, and none", _sql(f"update trial_params set param_value = 99, distribution_json = :text where {_VALUE}", text='{"name": "CategoricalDistribution", "attributes": {"choices": ["a"]}}'), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("range deep", _range(_DEEP), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("parameters doubled", _rebuilt("trial_params", "param_id integer primary key, trial_id integer, param_name text, param_value float, distribution_json text", f"insert into trial_params select param_id + 100, trial_id, param_name, param_value, distribution_json from trial_params where {_VALUE}"), NOTHING),
    # Numbers, times, identifiers.
    Damage("numbers with gaps", _sql("delete from trials where number = 1 and study_id = 1"), REFUSED, "numbered"),
    Damage("numbers doubled", _set("number", "1"), REFUSED, "numbered"),
    Damage("number null", _set("number", "null"), REFUSED, "numbered"),
    Damage("number negative", _set("number", "-5"), REFUSED, "numbered"),
    Damage("number huge", _set("number", "9000000000000000000"), REFUSED, "numbered"),
    Damage("number a text", _set("number", "'first'"), REFUSED, "numbered"),
    Damage("id huge", _sql(f"update trial_params set trial_id = 9223372036854775807 where {_VALUE}", f"update trial_values set trial_id = 9223372036854775807 where {_VALUE}", f"update trial_user_attributes set trial_id = 9223372036854775807 where {_VALUE}", f"update trials set trial_id = 9223372036854775807 where {_VALUE}"), REFUSED, "has the id"),
    Damage("id negative", _sql(f"update trials set trial_id = -7 where {_VALUE}"), REFUSED, "has the id"),
    Damage("start unknown", _set("datetime_start", "null"), LEFT_OUT, "has no start"),
    Damage("end unknown", _set("datetime_complete", "null"), LEFT_OUT, "has no end"),
    Damage("time no time", _set("datetime_complete", "'yesterday'"), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("time of year 9999", _set("datetime_complete", "'9999-12-31 23:59:59.000000'", where="1"), NOTHING),
    Damage("end before start", _set("datetime_start", "'9999-12-31 23:59:59.000000'", where="1"), NOTHING),
    Damage("times far apart", _sql("update trials set datetime_start = '0001-01-01 00:00:00.000000', datetime_complete = '9998-01-01 00:00:00.000000' where number = 0"), NOTHING),
    Damage("trial of no study", _sql(f"update trials set study_id = 77 where {_VALUE}"), REFUSED, "numbered"),
    Damage("values of no trial", _sql("insert into trial_values (trial_id, objective, value, value_type) values (4711, 0, 1.0, 'FINITE')"), NOTHING),
    # Attributes of trials.
    Damage("origin no text", _attribute("trial_user_attributes", "origin", '{"a": [1]}'), NOTHING),
    Damage("origin endless", _attribute("trial_user_attributes", "origin", json.dumps("exact " * 100_000)), NOTHING),
    Damage("origin that acts on terminals", _attribute("trial_user_attributes", "origin", json.dumps("\x1b[2J=1+1")), NOTHING),
    Damage("lowest no number", _attribute("trial_user_attributes", "lowest", '"low"'), NOTHING),
    Damage("lost a text", _attribute("trial_user_attributes", "lost", '"yes"'), NOTHING),
    Damage("worker a list", _attribute("trial_user_attributes", "worker", "[1]"), NOTHING),
    Damage("error a mapping", _attribute("trial_user_attributes", "error", '{"a": 1}'), NOTHING),
    Damage("user attribute no JSON", _attribute("trial_user_attributes", "a", "nonsense"), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("user attribute large", _attribute("trial_user_attributes", "a", json.dumps("x" * 3_000_000)), NOTHING),
    Damage("system attribute no JSON", _attribute("trial_system_attributes", "a", "nonsense"), REFUSED, "trial 0 of 's/A' cannot be read"),
    Damage("system attribute a constraint", _attribute("trial_system_attributes", "constraints", '"none"'), NOTHING),
    Damage("system attribute of an artifact", _attribute("trial_system_attributes", "artifacts:a", '"none"'), NOTHING),
    Damage("state of a sampler", _attribute("trial_system_attributes", "cma:optimizer:0", '"80049525"'), NOTHING),
    Damage("reported values", _sql(f"insert into trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) values ({_FIRST}, -3, null, 'NAN')"), NOTHING),
    Damage("reported values unknown", _rebuilt("trial_intermediate_values", "trial_intermediate_value_id integer primary key, trial_id integer, step integer, intermediate_value float, intermediate_value_type text", f"insert into trial_intermediate_values values (1, {_FIRST}, 'x', 'y', 'z')"), REFUSED, "trial 0 of 's/A' cannot be read"),
    # Studies.
    Damage("two objectives", _sql("insert into study_directions (direction, study_id, objective) values ('MAXIMIZE', 1, 1)"), REFUSED, "another program made it"),
    Damage("direction reversed", _set("direction", "'MINIMIZE'", "study_directions", "study_id = 1"), REFUSED, "another program made it"),
    Damage("direction missing", _sql("delete from study_directions where study_id = 1"), REFUSED, "another program made it"),
    Damage("direction unknown", _rebuilt("study_directions", "study_direction_id integer primary key, direction text, study_id integer, objective integer", "update study_directions set direction = 'SIDEWAYS'"), REFUSED, "SIDEWAYS"),
    Damage("name doubled", _rebuilt("studies", "study_id integer primary key, study_name text", "insert into studies select 9, study_name from studies where study_id = 1"), REFUSED, "cannot be read"),
    Damage("name null", _rebuilt("studies", "study_id integer primary key, study_name text", "update studies set study_name = null where study_id = 1"), REFUSED, "has the name None"),
    Damage("name of another search", _set("study_name", "'s/C'", "studies", "study_id = 1"), NOTHING),
    Damage("foreign study", _sql("insert into studies (study_id, study_name) values (50, 'a study of another program')"), NOTHING),
    Damage("foreign study of our name", _sql("insert into studies (study_id, study_name) values (50, 's/A@2')", "insert into study_directions (direction, study_id, objective) values ('MINIMIZE', 50, 0)"), NOTHING),
    Damage("bound to nothing", _sql("delete from study_user_attributes where key = 'blockfit:bound_to'"), REFUSED, "lack the inputs that they were scored with"),
    Damage("bound to a number", _attribute("study_user_attributes", "blockfit:bound_to", "7"), NOTHING),
    Damage("bound to something deep", _attribute("study_user_attributes", "blockfit:bound_to", json.dumps({"recipe": json.loads("[" * 90 + "]" * 90)})), NOTHING),
    Damage("bound to no JSON", _attribute("study_user_attributes", "blockfit:bound_to", "{"), REFUSED, "cannot be read"),
    Damage("under other alphas", _attribute("study_user_attributes", "blockfit:upstream", '"{}"'), NOTHING),
    Damage("under no alphas", _attribute("study_user_attributes", "blockfit:upstream", "[3]"), NOTHING),
    Damage("opened a number", _attribute("study_user_attributes", "blockfit:opened", "3"), NOTHING),
    Damage("opened in time to come", _attribute("study_user_attributes", "blockfit:opened", '"9999"'), NOTHING),
    Damage("budgets a list", _attribute("study_user_attributes", "blockfit:budgets", "[1]"), NOTHING),
    Damage("budgets no numbers", _attribute("study_user_attributes", "blockfit:budgets", '{"last": {"s": "many"}, "workers": {"a": 1, "b": {"s": -4}}}'), NOTHING),
    Damage("budgets huge", _attribute("study_user_attributes", "blockfit:budgets", '{"last": {"s": 1' + "0" * 400 + '}, "workers": []}'), NOTHING),
    Damage("study attribute deep", _attribute("study_user_attributes", "a", _DEEP), REFUSED, "cannot be read"),
    Damage("names of values", _attribute("study_system_attributes", "study:metric_names", '{"a": 1}'), NOTHING),
    Damage("study attribute of a note", _sql("insert into study_system_attributes (study_id, key, value_json) values (1, 'dashboard:note_ver', '2'), (1, 'dashboard:note_str:7', '3')"), NOTHING),
    Damage("study attribute of an artifact", _attribute("study_system_attributes", "artifacts:a", '"none"'), NOTHING),
    # Tables.
    *(
        Damage(f"without {table}", _sql(f"drop table {table}"), REFUSED, f"lacks the table '{table}'")
        for table in (
            "studies", "study_directions", "study_user_attributes", "study_system_attributes", "trials", "trial_params",
            "trial_values", "trial_user_attributes", "trial_system_attributes", "trial_intermediate_values",
            "trial_heartbeats", "version_info", "alembic_version",
        )
    ),
    *(
        Damage(
            f"{table} a view",
            _sql(f"alter table {table} rename to stored", f"create view {table} as select * from stored"),
            REFUSED,
            "contains a view",
        )
        for table in ("studies", "trials", "trial_params", "trial_values", "trial_user_attributes", "version_info")
    ),
    Damage("an endless view", _sql("create view endless as with recursive n(i) as (select 1 union all select i + 1 from n) select * from n"), REFUSED, "contains a view"),
    Damage("a trigger", _sql("create trigger gone after insert on trials begin delete from trials; end"), REFUSED, "contains a trigger"),
    Damage("a trigger on reading's side", _sql("create trigger gone before update on trials begin select raise(abort, 'no'); end"), REFUSED, "contains a trigger"),
    Damage("a computed table", _sql("create virtual table found using fts5(a)"), REFUSED, "computed, not stored"),
    Damage("a computed column", _sql("alter table trials rename to stored", "create table trials (trial_id integer primary key, number integer, study_id integer, state text as ('COMPLETE'), datetime_start datetime, datetime_complete datetime)", "drop table stored"), REFUSED, "is computed"),
    Damage("a column less", _rebuilt("trial_values", "trial_value_id integer primary key, trial_id integer, objective integer, value float"), REFUSED, "lacks the column 'value_type'"),
    Damage("a table without a key", _rebuilt("trial_values", "trial_value_id integer, trial_id integer, objective integer, value float, value_type text"), REFUSED, "does not number its rows"),
    Damage("a column more", _sql("alter table trials add column more text default 'x'"), NOTHING),
    Damage("a column more that must be filled", _sql("alter table trials rename to stored", "create table trials (trial_id integer primary key, number integer, study_id integer, state text, datetime_start datetime, datetime_complete datetime, more text not null)", "insert into trials select *, 'x' from stored", "drop table stored"), NOTHING),
    Damage("a table more", _sql("create table more (a text)"), NOTHING),
    Damage("tables of another program", lambda path: (path.unlink(), _sql("create table places (a text)")(path)), REFUSED, "tables of another program"),
    Damage("a rule that refuses", _rebuilt("trials", "trial_id integer primary key, number integer, study_id integer, state text check (state <> 'RUNNING'), datetime_start datetime, datetime_complete datetime"), NOTHING),
    Damage("version unknown", _sql("update alembic_version set version_num = 'banana'"), REFUSED, "newer Optuna"),
    Damage("version older", _sql("update alembic_version set version_num = 'v2.6.0.a'"), REFUSED, "older Optuna"),
    Damage("version twice", _rebuilt("alembic_version", "version_num text", "insert into alembic_version values ('v3.0.0.d')"), REFUSED, ""),
    Damage("version empty", _sql("delete from alembic_version"), REFUSED, "lacks the version"),
    Damage("version of the tables missing", _sql("delete from version_info"), REFUSED, "lacks the version"),
    Damage("version of the tables twice", _rebuilt("version_info", "version_info_id integer primary key, schema_version integer, library_version text", "insert into version_info select version_info_id + 1, schema_version, library_version from version_info"), REFUSED, "cannot be opened"),
    # The file.
    *(Damage(f"cut at {100 * share:g} %", _cut(share), REFUSED) for share in (0.9, 0.5, 0.25, 0.04)),
    Damage("cut amid its head", lambda path: os.truncate(path, 50), REFUSED),
    Damage("empty", lambda path: os.truncate(path, 0), NOTHING),
    Damage("head overwritten", _overwritten(0, 100), REFUSED),
    Damage("page overwritten", _overwritten(4096, 4096), REFUSED),
    Damage("pages overwritten", _overwritten(8192, 40960), REFUSED),
    Damage("a text", lambda path: path.write_text("no database", encoding="utf-8"), REFUSED),
    Damage("rubbish that waits to be taken in", _beside("-wal", b"\x37\x7f\x06\x82" + b"\xa5" * 5000), NOTHING),
    Damage("rubbish that waits to be undone", _beside("-journal", b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\xa5" * 5000), NOTHING),
    Damage("a change that waits to be taken in", _waiting, LEFT_OUT, "pruned"),
)  # fmt: skip


def _line(change: Callable[[dict], None], code: int = 4, number: int = 0) -> Callable[[Path], None]:
    """Change a line of the journal: the `number`-th with the operation `code` (4: a new trial)."""

    def do(path: Path) -> None:
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        change([line for line in lines if line["op_code"] == code][number])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    return do


def _lines(*more: str, first: bool = False) -> Callable[[Path], None]:
    """Add lines at the end or at the beginning."""

    def do(path: Path) -> None:
        text, added = path.read_bytes(), "".join(line + "\n" for line in more).encode()
        path.write_bytes(added + text if first else text + added)

    return do


def _torn(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "worker_id"')


# Damage to a journal, in which each trial is a line.
JOURNAL_DAMAGES = (
    Damage("state unknown", _line(lambda line: line.update(state=77)), REFUSED, "77 is not a valid TrialState"),
    Damage("state pruned", _line(lambda line: line.update(state=2)), LEFT_OUT, "pruned"),
    Damage("value a text", _line(lambda line: line.update(values=["much"]), 6), LEFT_OUT, "its value is not one"),
    Damage("values a text", _line(lambda line: line.update(values="much"), 6), LEFT_OUT, "its value is not one"),
    Damage("no value", _line(lambda line: line.update(values=None), 6), LEFT_OUT, "its value is not one similarity"),
    Damage("value too high", _line(lambda line: line.update(values=[1e300]), 6), LEFT_OUT, "its value is not one"),
    Damage("two values", _line(lambda line: line.update(values=[0.1, 0.2]), 6), LEFT_OUT, "its value is not one"),
    Damage("values a mapping", _line(lambda line: line.update(values={"a": 1}), 6), LEFT_OUT, "its value is not one"),
    Damage("end no time", _line(lambda line: line.update(datetime_complete=[]), 6), REFUSED, "cannot be opened"),
    Damage("no parameters", _line(lambda line: line.update(params={})), LEFT_OUT, "parameters are not those"),
    Damage("parameters a list", _line(lambda line: line.update(params=[1])), REFUSED, "cannot be opened"),
    Damage(
        "parameter a text", _line(lambda line: line["params"].update({"A.OUT03": "x"})), LEFT_OUT, "not a number in its"
    ),
    Damage(
        "range no JSON", _line(lambda line: line["distributions"].update({"A.OUT03": "x"})), REFUSED, "cannot be opened"
    ),
    Damage("attributes a list", _line(lambda line: line.update(user_attrs=[1])), REFUSED, "is not a mapping"),
    Damage("system attributes a number", _line(lambda line: line.update(system_attrs=1)), REFUSED, "no mapping"),
    Damage(
        "scores a text",
        _line(lambda line: line.update(user_attr={"block_scores": "x"}), 8),
        LEFT_OUT,
        "not those of this",
    ),
    Damage("start no time", _line(lambda line: line.update(datetime_start="yesterday")), REFUSED, "cannot be opened"),
    Damage("start a number", _line(lambda line: line.update(datetime_start=3)), REFUSED, "cannot be opened"),
    Damage("of no study", _line(lambda line: line.update(study_id=99)), NOTHING),
    Damage("of a study that is a list", _line(lambda line: line.update(study_id=[])), REFUSED, "cannot be opened"),
    Damage("two objectives", _line(lambda line: line.update(directions=[2, 2]), 0), REFUSED, "another program made it"),
    Damage("direction unknown", _line(lambda line: line.update(directions=[9]), 0), REFUSED, "cannot be opened"),
    Damage("name a number", _line(lambda line: line.update(study_name=7), 0), REFUSED, "has the name 7"),
    Damage("operation unknown", _lines('{"op_code": 99, "worker_id": "a"}'), REFUSED, "cannot be opened"),
    Damage("operation missing", _lines('{"worker_id": "a"}'), REFUSED, "cannot be opened"),
    Damage("a study deleted", _lines('{"op_code": 1, "worker_id": "a", "study_id": 0}'), NOTHING),
    Damage("a line that is no mapping", _lines("[1, 2]"), REFUSED, "cannot be opened"),
    Damage("a line that is no JSON", _lines("nonsense", "{}"), REFUSED, "cannot be opened"),
    Damage("a line that is deep", _lines(_DEEP), REFUSED, "cannot be opened"),
    Damage(
        "a line of bytes", lambda path: path.write_bytes(b"\xff\xfe\n" + path.read_bytes()), REFUSED, "is not a journal"
    ),
    Damage("an empty line", _lines("", first=True), REFUSED, "is not a journal"),
    Damage("a torn last line", _torn, NOTHING),
    Damage("empty", lambda path: path.write_bytes(b""), NOTHING),
)
