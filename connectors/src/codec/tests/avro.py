"""Avro records by fastavro, and the rows that they should become. Prints a list of cases as JSON.

A column's value is as the json codec writes it; {"json": X} is a text column that holds the JSON of X.
"""
import base64, datetime, decimal, io, json, random, struct, sys, uuid

import fastavro

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
random.seed(int(sys.argv[1]))
decimal.getcontext().prec = 60


def stamp(value):
    text = value.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    micros = value.microsecond
    if micros:
        text += f".{micros:06}" if micros % 1000 else f".{micros // 1000:03}"
    return text + "Z"


def text():
    return "".join(random.choice("abé漢🎉\"\\\n \0") for _ in range(random.randrange(8)))


def moment():
    return EPOCH + datetime.timedelta(microseconds=random.randrange(-(10**15), 10**16))


def by_millis():
    value = moment()
    return value.replace(microsecond=value.microsecond // 1000 * 1000)


def single(value):
    """For types whose column shows them as they are."""
    return value, value


def double():
    value = random.choice([0.0, -1.5, 3.25e300, random.uniform(-1e6, 1e6)])
    return value, value


def single_precision():
    value = struct.unpack("<f", struct.pack("<f", random.uniform(-1e6, 1e6)))[0]
    return value, value


def some_bytes(size=None):
    value = random.randbytes(random.randrange(9) if size is None else size)
    return value, base64.b64encode(value).decode()


def a_decimal(digits, scale):
    value = decimal.Decimal(random.randrange(-(10**digits) + 1, 10**digits)).scaleb(-scale)
    return value, {"number": f"{value:.{scale}f}"}


def with_text(make, show):
    value = make()
    return value, show(value)


COUNT = [0]


def named(kind, **more):
    COUNT[0] += 1
    return {"type": kind, "name": f"N{COUNT[0]}", **more}


def leaf():
    """A type, and a function that makes a value and what its column shows."""
    fixed, enum = named("fixed", size=5), named("enum", symbols=["A", "B", "C"])
    wide = named("fixed", size=12, logicalType="decimal", precision=25, scale=3)
    months, days, millis = (random.randrange(2**32) for _ in range(3))
    duration = struct.pack("<III", months, days, millis), f"P{months}M{days}DT{millis // 1000}.{millis % 1000:03}S"
    clock = lambda: datetime.time(random.randrange(24), 5, 9, random.randrange(1000000))
    return random.choice([
        (named("fixed", size=12, logicalType="duration"), lambda: duration),
        ({"type": "long", "logicalType": "local-timestamp-micros"},
         lambda: with_text(lambda: moment().replace(tzinfo=None), stamp)),
        ({"type": "long", "logicalType": "time-micros"},
         lambda: with_text(clock, lambda time: time.isoformat("microseconds" if time.microsecond else "seconds"))),
        ("boolean", lambda: single(random.random() < 0.5)),
        ("int", lambda: single(random.randrange(-(2**31), 2**31))),
        ("long", lambda: single(random.choice([0, -1, 2**63 - 1, -(2**63), random.randrange(-9999, 9999)]))),
        ("float", single_precision),
        ("double", double),
        ("bytes", some_bytes),
        ("string", lambda: single(text())),
        (fixed, lambda: some_bytes(5)),
        (enum, lambda: single(random.choice("ABC"))),
        ({"type": "int", "logicalType": "date"},
         lambda: with_text(lambda: datetime.date(1970, 1, 1) + datetime.timedelta(days=random.randrange(-9999, 99999)), str)),
        ({"type": "long", "logicalType": "timestamp-millis"}, lambda: with_text(by_millis, stamp)),
        ({"type": "long", "logicalType": "timestamp-micros"}, lambda: with_text(moment, stamp)),
        ({"type": "string", "logicalType": "uuid"}, lambda: with_text(lambda: uuid.UUID(int=random.getrandbits(128)), str)),
        ({"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 10}, lambda: a_decimal(38, 10)),
        (wide, lambda: a_decimal(25, 3)),
        ({"type": "int", "logicalType": "time-millis"},
         lambda: with_text(lambda: datetime.time(random.randrange(24), 5, 9, random.randrange(1000) * 1000),
                           lambda time: time.isoformat("milliseconds" if time.microsecond else "seconds"))),
    ])


def plain(shown):
    """What a value is inside of JSON text, where nothing is a text that holds JSON."""
    if isinstance(shown, dict):
        return plain(shown["json"]) if "json" in shown else {name: plain(value) for name, value in shown.items()}
    return [plain(value) for value in shown] if isinstance(shown, list) else shown


def a_type(depth):
    choice = random.randrange(8) if depth else 0
    if choice < 4:
        return leaf()
    kind, make = a_type(depth - 1)
    if choice == 4 and not isinstance(kind, list):
        order = random.random() < 0.5
        return (["null", kind] if order else [kind, "null"]), lambda: make() if random.random() < 0.7 else (None, None)
    if choice == 5:
        def array():
            items = [make() for _ in range(random.randrange(4))]
            return [value for value, _ in items], [shown for _, shown in items]
        return {"type": "array", "items": kind}, array
    if choice == 6:
        def a_map():
            items = {text(): make() for _ in range(random.randrange(4))}
            shown = {name: plain(shown) for name, (_, shown) in items.items()}
            return {name: value for name, (value, _) in items.items()}, {"json": shown}
        return {"type": "map", "values": kind}, a_map
    return a_record(depth - 1)


def a_record(depth):
    members = [(f"f{place}", *a_type(depth)) for place in range(random.randrange(1, 6))]
    schema = named("record", fields=[{"name": name, "type": kind} for name, kind, _ in members])

    def record():
        made = {name: make() for name, _, make in members}
        return {name: value for name, (value, _) in made.items()}, {name: shown for name, (_, shown) in made.items()}
    return schema, record


def written(schema, value):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, value)
    return out.getvalue().hex()


def random_case():
    schema, make = a_record(3)
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))
    made = [make() for _ in range(20)]
    return {"schema": schema, "records": [written(parsed, value) for value, _ in made], "rows": [shown for _, shown in made]}


def record(*fields, name="R", **more):
    return {"type": "record", "name": name, "fields": list(fields), **more}


def field(name, kind, **more):
    return {"name": name, "type": kind, **more}


def resolved(writer, reader, *values):
    """The reader's side is fastavro's too: what it cannot resolve is null."""
    rows = []
    parsed = fastavro.parse_schema(writer)
    records = [written(parsed, value) for value in values]
    for record in records:
        try:
            rows.append(fastavro.schemaless_reader(io.BytesIO(bytes.fromhex(record)), parsed, fastavro.parse_schema(reader)))
        except Exception:
            rows.append(None)
    return {"schema": writer, "reader": reader, "records": records, "rows": rows}


def resolutions():
    inner = record(field("x", "int"), name="Inner")
    node = record(field("v", "int"), field("next", ["null", "Node"]), name="Node")
    small, large = ({"type": "enum", "name": "E", "symbols": s} for s in (["A", "B"], ["A", "B", "C"]))
    yield resolved(record(field("a", "int"), field("b", "string")), record(field("b", "string"), field("a", "long")),
                   {"a": 1, "b": "x"})
    yield resolved(record(field("a", "int"), field("gone", {"type": "map", "values": ["null", inner]}), field("z", "string")),
                   record(field("z", "string"), field("a", "double")), {"a": 7, "gone": {"k": {"x": 1}, "l": None}, "z": "end"})
    yield resolved(record(field("a", "int")), record(field("a", "int"), field("n", ["null", "string"], default=None),
                   field("s", "string", default="né"), field("l", {"type": "array", "items": "long"}, default=[1, -2]),
                   field("f", "double", default=2.5), field("i", inner, default={"x": 5})), {"a": 1})
    yield resolved(record(field("old", "string")), record(field("new", "string", aliases=["old"])), {"old": "kept"})
    yield resolved(record(field("e", large)), record(field("e", small)), {"e": "A"}, {"e": "C"})
    yield resolved(record(field("e", large)), record(field("e", {**small, "default": "B"})), {"e": "A"}, {"e": "C"})
    yield resolved(record(field("a", "int")), record(field("a", "int"), field("needed", "string")), {"a": 1})
    yield resolved(record(field("a", ["null", "int"])), record(field("a", "long")), {"a": 5})
    yield resolved(record(field("a", "int")), record(field("a", ["null", "double"])), {"a": 5})
    yield resolved(record(field("s", "string")), record(field("s", "string")), {"s": "same"})
    yield resolved(record(field("l", {"type": "array", "items": inner})),
                   record(field("l", {"type": "array", "items": record(field("y", "string", default="d"), field("x", "long"), name="Inner")})),
                   {"l": [{"x": 1}, {"x": 2}]})
    yield {"schema": node, "records": [written(fastavro.parse_schema(node), {"v": 1, "next": {"v": 2, "next": None}})],
           "rows": [{"v": 1, "next": {"json": {"v": 2, "next": None}}}]}
    mixed = record(field("m", ["null", "int", "string", inner]))
    values = [({"m": None}, None), ({"m": 4}, "4"), ({"m": "t"}, "t"), ({"m": {"x": 1}}, {"json": {"x": 1}})]
    yield {"schema": mixed, "records": [written(fastavro.parse_schema(mixed), value) for value, _ in values],
           "rows": [{"m": shown} for _, shown in values]}


def trees():
    """A record inside of itself, and unions of which a text says which of their types it is."""
    schema = {"type": "record", "name": "Tree", "fields": [
        field("v", "int"), field("children", {"type": "array", "items": "Tree"}), field("named", {"type": "map", "values": "Tree"}),
        field("more", ["null", "long", "boolean", "Tree", {"type": "map", "values": ["null", "double", "long", "string"]}]),
        field("kind", [{"type": "enum", "name": "K", "symbols": ["A", "B"]}, {"type": "long", "logicalType": "timestamp-millis"}]),
    ]}
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))

    def tree(depth):
        def some(make):
            return {text(): make() for _ in range(random.randrange(3))}
        below = (lambda: tree(depth - 1)) if depth else (lambda: None)
        children = [below() for _ in range(random.randrange(3) if depth else 0)]
        names = some(below) if depth else {}
        # What is no whole number stays none.
        values = some(lambda: random.choice([None, random.uniform(-9, 9), 2.0, random.randrange(99), text()]))
        more = random.choice([(None, None), (7, 7), (True, True), (values, values)] + ([below()] if depth else []))
        kind = random.choice([("A", "A"), with_text(by_millis, stamp)])
        made = {"v": random.randrange(99), "children": [child for child, _ in children],
                "named": {name: child for name, (child, _) in names.items()}, "more": more[0], "kind": kind[0]}
        shown = {"v": made["v"], "children": [child for _, child in children],
                 "named": {name: child for name, (_, child) in names.items()}, "more": more[1], "kind": kind[1]}
        return made, shown

    made = [tree(3) for _ in range(100)]
    def row(shown):
        more = shown["more"]
        return {"v": shown["v"], "children": [{"json": child} for child in shown["children"]], "named": {"json": shown["named"]},
                "more": None if more is None else {"json": more}, "kind": shown["kind"]}
    return {"schema": schema, "records": [written(parsed, value) for value, _ in made], "rows": [row(shown) for _, shown in made]}


cases = list(resolutions()) + [trees()] + [random_case() for _ in range(int(sys.argv[2]))]
print(json.dumps(cases))
