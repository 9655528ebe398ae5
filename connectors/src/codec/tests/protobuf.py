"""Messages by Google's own Protobuf, and the rows that they should become. Prints the descriptor set and cases as JSON.

A column's value is as the json codec writes it; {"json": X} is a text column that holds the JSON of X.
"""
import base64, datetime, json, pathlib, random, struct, sys, tempfile

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_tools import protoc

PROTO = """
syntax = "proto3";
package shop.v1;
import "google/protobuf/timestamp.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/struct.proto";
enum Kind { UNKNOWN = 0; SMALL = 1; LARGE = 2; }
message Outer { message Unused {} message Order {
  int32 a = 1; sint64 b = 2; uint32 c = 3; uint64 d = 4; fixed32 e = 5; sfixed64 f = 6; bool g = 7;
  float h = 8; double i = 9; string j = 10; bytes k = 11; Kind l = 12;
  optional int64 m = 13; optional string n = 14; repeated int32 o = 15; repeated string p = 16;
  map<string, int64> q = 17; map<int32, Line> r = 18; Line s = 19; repeated Line t = 20;
  google.protobuf.Timestamp u = 21; google.protobuf.Int64Value v = 22; google.protobuf.StringValue w = 23;
  google.protobuf.Duration x = 24; google.protobuf.Struct y = 25;
  oneof z { string z1 = 26; int32 z2 = 27; Line z3 = 28; }
  google.protobuf.Value any = 33; google.protobuf.ListValue some = 34; map<bool, google.protobuf.Timestamp> moments = 35;
  map<fixed64, Kind> sizes = 36; Unused nothing = 37; repeated google.protobuf.Struct notes = 38;
  Node tree = 29; repeated Kind kinds = 30; repeated google.protobuf.Timestamp times = 31; google.protobuf.BoolValue flag = 32;
} }
message Line { string sku = 1; optional double price = 2; Kind kind = 3; }
message Node { int32 value = 1; repeated Node children = 2; }
"""
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
random.seed(int(sys.argv[1]))


def compiled():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "shop.proto").write_text(PROTO)
        include = pathlib.Path(protoc.__file__).parent / "_proto"
        arguments = ["protoc", f"-I{folder}", f"-I{include}", "--include_imports", f"--descriptor_set_out={folder}/set"]
        assert protoc.main(arguments + ["shop.proto"]) == 0
        return (folder / "set").read_bytes()


descriptors = compiled()
pool = descriptor_pool.DescriptorPool()
for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file:
    pool.Add(file)
Order = message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.v1.Outer.Order"))
Kind = pool.FindEnumTypeByName("shop.v1.Kind")


def integer(bits, signed=True):
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return random.choice([0, 1, low, high, random.randint(low, high)])


def text():
    return "".join(random.choice("abé漢🎉\"\\\n ") for _ in range(random.randrange(8)))


def double():
    return random.choice([0.0, -1.5, 3.25e300, random.uniform(-1e6, 1e6)])


def single():
    return struct.unpack("<f", struct.pack("<f", random.uniform(-1e6, 1e6)))[0]


def kind(number):
    value = Kind.values_by_number.get(number)
    return value.name if value else str(number)


def stamp(value):
    moment = EPOCH + datetime.timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    shown, micros = moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0"), moment.microsecond
    if micros:
        shown += f".{micros:06}" if micros % 1000 else f".{micros // 1000:03}"
    return shown + "Z"


def fill_stamp(value):
    value.seconds, value.nanos = random.randrange(-(10**9), 10**10), random.randrange(10**9)
    # An absent and an empty message are different things.
    value.SetInParent()


def fill_line(line):
    line.sku, line.kind = text(), random.randrange(4)
    if random.random() < 0.5:
        line.price = double()
    line.SetInParent()


def line(value):
    return {"sku": value.sku, "price": value.price if value.HasField("price") else None, "kind": kind(value.kind)}


def line_json(value):
    return {name: shown for name, shown in line(value).items() if name != "price" or shown is not None}


def fill_node(node, depth=3):
    node.value = integer(32)
    for _ in range(random.randrange(3) if depth else 0):
        fill_node(node.children.add(), depth - 1)
    node.SetInParent()


def node(value):
    return {"value": value.value, "children": [node(child) for child in value.children]}


def some():
    return random.random() < 0.7


def order():
    o = Order()
    if some(): o.a, o.b, o.c, o.d = integer(32), integer(64), integer(32, False), integer(64, False)
    if some(): o.e, o.f, o.g, o.h, o.i = integer(32, False), integer(64), some(), single(), double()
    if some(): o.j, o.k, o.l = text(), random.randbytes(random.randrange(6)), random.randrange(5)
    if some(): o.m = integer(64)
    if some(): o.n = text()
    o.o.extend(integer(32) for _ in range(random.randrange(4)))
    o.p.extend(text() for _ in range(random.randrange(3)))
    # No key begins with another one, and keys that are no texts are alone: Google's Python orders those in its own way.
    for _ in range(random.randrange(3)): o.q[text() + "."] = integer(64)
    if some(): fill_line(o.r[integer(32)])
    if some(): fill_line(o.s)
    for _ in range(random.randrange(3)): fill_line(o.t.add())
    if some(): fill_stamp(o.u)
    if some(): o.v.value = random.choice([0, integer(64)]); o.v.SetInParent()
    if some(): o.w.value = random.choice(["", text()]); o.w.SetInParent()
    if some(): o.x.seconds, o.x.nanos = 3, random.choice([0, 500_000_000, 1])
    if some(): o.y.update({"a": [1, None, {"b": True}], "c": "d"})
    choice = random.randrange(4)
    if choice == 0: o.z1 = text()
    if choice == 1: o.z2 = integer(32)
    if choice == 2: fill_line(o.z3)
    if some(): fill_node(o.tree)
    o.kinds.extend(random.randrange(4) for _ in range(random.randrange(3)))
    for _ in range(random.randrange(2)): fill_stamp(o.times.add())
    if some(): o.flag.value = some(); o.flag.SetInParent()
    if some(): json_format.ParseDict(random.choice(JSON), o.any)
    if some(): json_format.ParseDict(random.choice(JSON[:2]), o.some)
    if some(): fill_stamp(o.moments[some()])
    if some(): o.sizes[integer(64, False)] = random.randrange(4)
    if random.random() < 0.2: o.nothing.SetInParent()
    for _ in range(random.randrange(2)): o.notes.add().update({"é": text(), "n": double()})
    return o


JSON = [[], [1, "a", [None]], None, True, "é\"", -2.5e-300, {}, {"b": {"c": [{}]}, "a": None}]


def row(o):
    one = o.WhichOneof("z")
    duration = f"3.{o.x.nanos:09}".rstrip("0").rstrip(".") + "s"
    return {
        "a": o.a, "b": o.b, "c": o.c, "d": {"number": str(o.d)}, "e": o.e, "f": o.f, "g": o.g, "h": o.h, "i": o.i, "j": o.j,
        "k": base64.b64encode(o.k).decode(), "l": kind(o.l),
        "m": o.m if o.HasField("m") else None, "n": o.n if o.HasField("n") else None,
        "o": list(o.o), "p": list(o.p), "q": {"json": dict(o.q)},
        "r": {"json": {str(key): line_json(value) for key, value in o.r.items()}},
        "s": line(o.s) if o.HasField("s") else None, "t": [line(value) for value in o.t],
        "u": stamp(o.u) if o.HasField("u") else None,
        "v": o.v.value if o.HasField("v") else None, "w": o.w.value if o.HasField("w") else None,
        "x": duration if o.HasField("x") else None,
        "y": {"json": {"a": [1, None, {"b": True}], "c": "d"}} if o.HasField("y") else None,
        "z1": o.z1 if one == "z1" else None, "z2": o.z2 if one == "z2" else None, "z3": line(o.z3) if one == "z3" else None,
        "tree": tree(o), "kinds": [kind(value) for value in o.kinds],
        "any": {"json": json_format.MessageToDict(o.any)} if o.HasField("any") else None,
        "some": {"json": json_format.MessageToDict(o.some)} if o.HasField("some") else None,
        "moments": {"json": {str(key).lower(): stamp(value) for key, value in o.moments.items()}},
        "sizes": {"json": {str(key): kind(value) for key, value in o.sizes.items()}},
        "nothing": {"json": {}} if o.HasField("nothing") else None,
        "notes": [{"json": json_format.MessageToDict(note)} for note in o.notes],
        "times": [stamp(value) for value in o.times], "flag": o.flag.value if o.HasField("flag") else None,
    }


def tree(o):
    """A message inside of itself: its first level is columns, the next one the text of its JSON."""
    if not o.HasField("tree"):
        return None
    return {"value": o.tree.value, "children": [{"json": node(child)} for child in o.tree.children]}


def written(o):
    """What a sink writes of its rows: microseconds."""
    o = Order.FromString(o.SerializeToString())
    for time in [o.u] * o.HasField("u") + list(o.times) + list(o.moments.values()):
        time.nanos = time.nanos // 1000 * 1000
    return o.SerializeToString(deterministic=True)


orders = [order() for _ in range(int(sys.argv[2]))]
print(json.dumps({
    "descriptors": descriptors.hex(),
    "records": [o.SerializeToString().hex() for o in orders],
    "rows": [row(o) for o in orders],
    "written": [written(o).hex() for o in orders],
}))
