//! Answers to requests that are not served.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{decode::Problem, playground::Unwatchable, queue};

/// Why a request is not served.
#[derive(Clone, Debug)]
pub enum Refused {
    Malformed(String),
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    Slow,
    TooLarge(String),
    Unsupported(String),
    Unprocessable(String),
    Busy { retry_after: u64 },
    Internal,
    Unavailable,
    Deadline,
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unsupported(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Deadline => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// What happened, for machines: one word for each status, so that whoever writes a client reads one table.
    fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Slow => "timeout",
            Self::TooLarge(_) => "too_large",
            Self::Unsupported(_) => "unsupported_media_type",
            Self::Unprocessable(_) => "unprocessable",
            Self::Busy { .. } => "busy",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::Deadline => "deadline",
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Malformed(text)
            | Self::TooLarge(text)
            | Self::Unsupported(text)
            | Self::Unprocessable(text) => text.clone(),
            Self::Unauthorized => "this server wants a token: Authorization: Bearer TOKEN".into(),
            Self::NotFound => "there is nothing here; /openapi.json lists what there is".into(),
            Self::MethodNotAllowed => "this path does not answer this method; see /openapi.json".into(),
            Self::Slow => "the body did not arrive in time".into(),
            Self::Busy { retry_after } => {
                format!("too much is waiting already; try again in {retry_after} s")
            }
            Self::Internal => "the server failed on this request; its log has the request's id".into(),
            Self::Unavailable => "the server is stopping".into(),
            Self::Deadline => "the deadline passed before there was an answer".into(),
        }
    }
}

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    error: ErrorFacts,
}

#[derive(Debug, Serialize, ToSchema)]
struct ErrorFacts {
    /// What happened, for machines.
    code: &'static str,
    /// What happened and what to do, for people.
    message: String,
    /// As in the header `x-request-id`.
    request_id: String,
}

impl ErrorBody {
    /// What is told of `refused`.
    pub fn new(refused: &Refused, request_id: &str) -> Self {
        let error = ErrorFacts {
            code: refused.code(),
            message: refused.message(),
            request_id: request_id.to_owned(),
        };
        Self { error }
    }
}

impl IntoResponse for Refused {
    /// Without a body: the layer around everything knows the request's id and writes it.
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        let headers = response.headers_mut();
        match &self {
            Self::Busy { retry_after } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_after));
            }
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // what is left of the body would be taken for the next request
            Self::Slow | Self::TooLarge(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::TooLarge(text) => Self::TooLarge(text),
            Problem::Unsupported(text) => Self::Unsupported(text),
            Problem::Malformed(text) => Self::Malformed(text),
            Problem::Unprocessable(text) => Self::Unprocessable(text),
        }
    }
}

impl From<queue::Refusal> for Refused {
    fn from(refusal: queue::Refusal) -> Self {
        match refusal {
            queue::Refusal::Deadline => Self::Deadline,
            queue::Refusal::Failed => Self::Internal,
        }
    }
}

impl From<Unwatchable> for Refused {
    fn from(unwatchable: Unwatchable) -> Self {
        match unwatchable {
            Unwatchable::Busy => Self::Busy { retry_after: 5 },
            Unwatchable::Closed => Self::Unavailable,
        }
    }
}
