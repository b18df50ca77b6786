"""The part of etcd's v3 API that Standoff speaks, as protobuf messages built at import.

On the wire a message is field numbers and types only, so nothing generated is needed, and nothing registers under
etcd's own package names: another etcd client may live in the same process, and any protobuf runtime from 5.29 on is
good. Enumerations are declared as int64, which has the same encoding.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

#: One message a line: name, then field:number:type. i int64, u uint64, b bytes, s string, t bool, or a message's name;
#: a star makes it repeated. Numbers as in etcd's rpc.proto, kv.proto and auth.proto (3.4; later versions only add).
_MESSAGES = """
Header cluster_id:1:u member_id:2:u revision:3:i raft_term:4:u
KeyValue key:1:b create_revision:2:i mod_revision:3:i version:4:i value:5:b lease:6:i
Event type:1:i kv:2:KeyValue
RangeRequest key:1:b range_end:2:b limit:3:i revision:4:i serializable:7:t keys_only:8:t count_only:9:t
RangeResponse header:1:Header kvs:2:KeyValue* more:3:t count:4:i
PutRequest key:1:b value:2:b lease:3:i
PutResponse header:1:Header
DeleteRangeRequest key:1:b range_end:2:b
DeleteRangeResponse header:1:Header deleted:2:i
RequestOp request_range:1:RangeRequest request_put:2:PutRequest request_delete_range:3:DeleteRangeRequest
Compare result:1:i target:2:i key:3:b version:4:i create_revision:5:i mod_revision:6:i value:7:b
TxnRequest compare:1:Compare* success:2:RequestOp* failure:3:RequestOp*
TxnResponse header:1:Header succeeded:2:t
CompactionRequest revision:1:i physical:2:t
CompactionResponse header:1:Header
WatchCreateRequest key:1:b range_end:2:b start_revision:3:i progress_notify:4:t
WatchCancelRequest watch_id:1:i
WatchProgressRequest
WatchRequest create_request:1:WatchCreateRequest cancel_request:2:WatchCancelRequest \
    progress_request:3:WatchProgressRequest
WatchResponse header:1:Header watch_id:2:i created:3:t canceled:4:t compact_revision:5:i cancel_reason:6:s \
    events:11:Event*
LeaseGrantRequest TTL:1:i ID:2:i
LeaseGrantResponse header:1:Header ID:2:i TTL:3:i error:4:s
LeaseRevokeRequest ID:1:i
LeaseRevokeResponse header:1:Header
LeaseTimeToLiveRequest ID:1:i keys:2:t
LeaseTimeToLiveResponse header:1:Header ID:2:i TTL:3:i grantedTTL:4:i keys:5:b*
StatusRequest
StatusResponse header:1:Header version:2:s dbSize:3:i leader:4:u errors:8:s*
AuthenticateRequest name:1:s password:2:s
AuthenticateResponse header:1:Header token:2:s
AuthEnableRequest
AuthEnableResponse header:1:Header
AuthUserAddRequest name:1:s password:2:s
AuthUserAddResponse header:1:Header
AuthUserGrantRoleRequest user:1:s role:2:s
AuthUserGrantRoleResponse header:1:Header
AuthRoleAddRequest name:1:s
AuthRoleAddResponse header:1:Header
Permission permType:1:i key:2:b range_end:3:b
AuthRoleGrantPermissionRequest name:1:s perm:2:Permission
AuthRoleGrantPermissionResponse header:1:Header
"""

_PACKAGE = "standoff.etcd"
_SCALARS = {"i": "TYPE_INT64", "u": "TYPE_UINT64", "b": "TYPE_BYTES", "s": "TYPE_STRING", "t": "TYPE_BOOL"}


def _build() -> dict[str, Any]:
    """Name -> message class. The pool is our own: nothing leaks into the process-wide one."""
    file = descriptor_pb2.FileDescriptorProto(name="standoff/etcd.proto", package=_PACKAGE, syntax="proto3")
    for line in _MESSAGES.replace("\\\n", "").strip().splitlines():
        name, *fields = line.split()
        message = file.message_type.add(name=name)
        for spec in fields:
            field_name, number, kind = spec.split(":")
            field = message.field.add(name=field_name, number=int(number))
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in _SCALARS:
                field.type = getattr(field, _SCALARS[kind])
            else:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{message.name}"))
        for message in file.message_type
    }


_CLASSES = _build()

EVENT_DELETE = 1
PERMISSION_READ, PERMISSION_WRITE, PERMISSION_READWRITE = range(3)

#: Name of an RPC -> (gRPC method, request class, response class).
METHODS: dict[str, tuple[str, Any, Any]] = {
    name: (f"/etcdserverpb.{service}/{name}", _CLASSES[f"{name}Request"], _CLASSES[f"{name}Response"])
    for service, names in {
        "KV": ("Range", "Put", "DeleteRange", "Txn"),
        "Watch": ("Watch",),
        "Lease": ("LeaseGrant", "LeaseRevoke", "LeaseTimeToLive"),
        "Maintenance": ("Status",),
        "Auth": ("Authenticate", "AuthEnable"),
    }.items()
    for name in names
}
# Where etcd's method name is not the message's name.
METHODS["Compact"] = ("/etcdserverpb.KV/Compact", _CLASSES["CompactionRequest"], _CLASSES["CompactionResponse"])
for _name in ("UserAdd", "UserGrantRole", "RoleAdd", "RoleGrantPermission"):
    METHODS[_name] = (
        f"/etcdserverpb.Auth/{_name}",
        _CLASSES[f"Auth{_name}Request"],
        _CLASSES[f"Auth{_name}Response"],
    )

WatchRequest: Any = _CLASSES["WatchRequest"]
RequestOp: Any = _CLASSES["RequestOp"]
