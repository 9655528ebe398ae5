"""Messages of proto2 by Google's own Protobuf: required fields, defaults, groups, lists that are packed and that are not."""
import json, pathlib, random, sys, tempfile

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

PROTO = """
syntax = "proto2";
package old;
enum Kind { FIRST = 3; SECOND = -1; }
message Order {
  required int32 id = 1; optional string name = 2 [default = "nobody"]; optional Kind kind = 3 [default = SECOND];
  optional group Part = 4 { required int64 n = 1; optional string note = 2; }
  repeated group Item = 5 { optional sint32 count = 1; map<string, Order> orders = 2; }
  repeated int32 packed = 6 [packed = true]; repeated int32 loose = 7; optional bool flag = 8; required bytes body = 9;
  oneof one { group Left = 10 { optional int32 l = 1; } string right = 11; }
}
"""
random.seed(int(sys.argv[1]))
with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / "old.proto").write_text(PROTO)
    assert protoc.main(["protoc", f"-I{folder}", "--include_imports", f"--descriptor_set_out={folder}/set", "old.proto"]) == 0
    descriptors = (folder / "set").read_bytes()
pool = descriptor_pool.DescriptorPool()
for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file:
    pool.Add(file)
Order = message_factory.GetMessageClass(pool.FindMessageTypeByName("old.Order"))


def some():
    return random.random() < 0.6


def fill(o, depth):
    o.id, o.body = random.choice([0, -1, 7]), random.randbytes(random.randrange(3))
    if some(): o.name = random.choice(["", "nobody", "é"])
    if some(): o.kind = random.choice([3, -1])
    if some(): o.part.n = random.choice([0, -(2**63)])
    if some() and o.HasField("part"): o.part.note = ""
    for _ in range(random.randrange(3)):
        item = o.item.add()
        if some(): item.count = -5
        if some() and depth: fill(item.orders[random.choice("ab")], depth - 1)
    o.packed.extend(random.randrange(-2, 300) for _ in range(random.randrange(3)))
    o.loose.extend(random.randrange(-2, 300) for _ in range(random.randrange(3)))
    if some(): o.flag = some()
    if some(): o.left.l = 0
    elif some(): o.right = "r"


orders = [Order() for _ in range(int(sys.argv[2]))]
for order in orders:
    fill(order, 2)
print(json.dumps({"descriptors": descriptors.hex(), "records": [o.SerializeToString(deterministic=True).hex() for o in orders]}))
