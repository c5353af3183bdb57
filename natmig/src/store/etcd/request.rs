//! The parts of a transaction, in few words.

use super::client::pb::{
    self,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
    response_op::Response,
};

/// The key's value is this.
pub(super) fn value_is(key: &str, value: &str) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Value.into(),
        key: key.into(),
        target_union: Some(TargetUnion::Value(value.into())),
    }
}

/// The key came to be at this revision; 0 if there must be no such key.
pub(super) fn created_at(key: &str, revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.into(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

pub(super) fn put(key: &str, value: &str, lease: i64) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(Request::RequestPut(pb::PutRequest {
            key: key.into(),
            value: value.into(),
            lease,
        })),
    }
}

pub(super) fn delete(key: &str) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: key.into(),
            range_end: Vec::new(),
        })),
    }
}

pub(super) fn delete_all(prefix: &str) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: prefix.into(),
            range_end: range_end(prefix),
        })),
    }
}

pub(super) fn get(key: &str) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(Request::RequestRange(pb::RangeRequest {
            key: key.into(),
            ..pb::RangeRequest::default()
        })),
    }
}

/// The first key behind all that have a prefix. Prefixes end with an ASCII character.
pub(super) fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

/// What each [`get`] of a transaction's branch found, in order.
pub(super) fn found(response: pb::TxnResponse) -> Vec<Option<pb::KeyValue>> {
    response
        .responses
        .into_iter()
        .filter_map(|response| match response.response {
            Some(Response::ResponseRange(range)) => Some(range.kvs.into_iter().next()),
            Some(Response::ResponsePut(_) | Response::ResponseDeleteRange(_)) | None => None,
        })
        .collect()
}
