//! What a request has, and how one is refused: parameters, bodies, problem documents.

use std::collections::HashMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pagestone::Ino;

use super::limits::IDLE;
use crate::problem::Code;
use crate::{Problem, StoreError};

/// A problem as a response.
#[derive(Debug)]
pub(super) struct Refused(pub(super) Problem);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        Refused(error.problem())
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Refused {
        Refused(problem)
    }
}

/// The parameters behind `?`. A value may be any bytes: `%FF`.
pub(super) struct Params(pub(super) HashMap<String, Vec<u8>>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Params, Refused> {
        let mut params = HashMap::new();
        for pair in parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value: Vec<u8> = percent_encoding::percent_decode_str(value).collect();
            if params.insert(name.to_owned(), value).is_some() {
                return Err(Problem::bad_request(format!("the parameter {name} is there twice")).into());
            }
        }
        Ok(Params(params))
    }
}

impl Params {
    pub(super) fn take(&mut self, name: &str) -> Result<Vec<u8>, Refused> {
        let missing = || Problem::bad_request(format!("the parameter {name} is missing")).into();
        self.0.remove(name).ok_or_else(missing)
    }

    pub(super) fn path(&mut self) -> Result<Vec<u8>, Refused> {
        let path = self.take("path")?;
        match path.first() {
            Some(b'/') => Ok(path),
            _ => Err(Problem::bad_request("a path in a pool begins with /").into()),
        }
    }

    pub(super) fn ino(&mut self) -> Result<Ino, Refused> {
        let text = self.take("inode")?;
        let number = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()).map(Ino);
        number.ok_or_else(|| Problem::bad_request("the parameter inode is not a number").into())
    }

    pub(super) fn number(&mut self, name: &str, default: u64) -> Result<u64, Refused> {
        let Some(value) = self.0.remove(name) else { return Ok(default) };
        let number = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| Problem::bad_request(format!("the parameter {name} is not a number")).into())
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Refused> {
        match self.0.remove(name).as_deref() {
            None | Some(b"false") => Ok(false),
            Some(b"true") => Ok(true),
            Some(_) => Err(Problem::bad_request(format!("the parameter {name} is neither true nor false")).into()),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Refused> {
        let text = self.0.remove(name).map(String::from_utf8).transpose();
        text.map_err(|_| Problem::bad_request(format!("the parameter {name} is not UTF-8")).into())
    }

    /// Whoever misspells a parameter shall know.
    pub(super) fn end(self) -> Result<(), Refused> {
        match self.0.into_keys().next() {
            Some(name) => Err(Problem::bad_request(format!("there is no parameter {name}")).into()),
            None => Ok(()),
        }
    }
}

/// The body of a request, unless the client takes too long to send it.
async fn in_time<T>(body: impl Future<Output = T>) -> Result<T, Refused> {
    let late = |_| Problem::new(408, libc::ETIMEDOUT, Code::Failed, "the body of the request did not arrive in time");
    Ok(tokio::time::timeout(IDLE, body).await.map_err(late)?)
}

/// A JSON body; what is wrong with it is a problem document too.
pub(super) struct Body<T>(pub(super) T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Body<T>, Refused> {
        let body = in_time(Json::<T>::from_request(request, state)).await?;
        body.map(|Json(value)| Body(value)).map_err(|e: JsonRejection| {
            let status = e.status().as_u16();
            Refused(Problem::new(status, libc::EINVAL, Code::Usage, e.body_text()))
        })
    }
}

/// A body of bytes.
pub(super) struct Bulk(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Bulk {
    type Rejection = Refused;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Bulk, Refused> {
        let body = in_time(Bytes::from_request(request, state)).await?;
        body.map(Bulk).map_err(|e| Problem::new(e.status().as_u16(), libc::EINVAL, Code::Usage, e.body_text()).into())
    }
}
