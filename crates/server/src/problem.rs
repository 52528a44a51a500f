//! What goes wrong with a request: the library's error here, a problem document on the way.
//!
//! ```text
//!   pagestone::Error --> Problem --JSON--> Problem        errno, exit code and text stay the same
//! ```

use std::io;
use std::path::Path;

use pagestone::Error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a command that meets this problem ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Code {
    /// It failed.
    Failed,
    /// What was asked for can never work.
    Usage,
    /// The pool is damaged.
    Damaged,
    /// It was cancelled.
    Interrupted,
}

/// What went wrong, as `application/problem+json` (RFC 9457).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The kind of problem in a few words.
    pub title: String,
    /// What happened, in a sentence that a user understands.
    pub detail: String,
    /// The error number a C program would see.
    pub errno: i32,
    /// How a command ends that meets it.
    pub code: Code,
}

impl Problem {
    /// The request itself is wrong.
    pub fn bad_request(detail: impl Into<String>) -> Problem {
        Problem::new(400, libc::EINVAL, Code::Usage, detail)
    }

    /// What the system says of a path that was asked for.
    pub fn of_path(path: &Path, error: &io::Error) -> Problem {
        // A path that no file can have bears no number.
        let named = if error.kind() == io::ErrorKind::InvalidInput { libc::EINVAL } else { libc::EIO };
        let errno = error.raw_os_error().unwrap_or(named);
        Problem::new(status_of(errno), errno, Code::Failed, format!("{}: {error}", path.display()))
    }

    /// A problem with an HTTP status, the error number of a C program, and a sentence.
    pub fn new(status: u16, errno: i32, code: Code, detail: impl Into<String>) -> Problem {
        let title = match status {
            400 => "bad request",
            403 => "forbidden",
            404 => "not found",
            405 => "method not allowed",
            409 => "conflict",
            413 => "request too large",
            500 => "failed",
            503 => "the server is ending",
            507 => "no space",
            _ => "refused",
        };
        Problem { status, title: title.into(), detail: detail.into(), errno, code }
    }
}

/// The HTTP status for an error number. One that comes of what was asked for is no failure of the server.
fn status_of(errno: i32) -> u16 {
    match errno {
        libc::ENOENT | libc::ESTALE | libc::ENODATA => 404,
        libc::EEXIST | libc::EBUSY | libc::ENOTEMPTY | libc::EINTR => 409,
        libc::ENOSPC | libc::EFBIG => 507,
        libc::EPERM | libc::EACCES | libc::EROFS => 403,
        libc::EINVAL | libc::ENAMETOOLONG | libc::ENOTDIR | libc::EISDIR | libc::ELOOP => 400,
        _ => 500,
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Problem {
        let errno = error.errno();
        let status = status_of(errno);
        let code = match error {
            Error::Corrupt { .. } => Code::Damaged,
            Error::Interrupted => Code::Interrupted,
            _ => Code::Failed,
        };
        Problem::new(status, errno, code, error.to_string())
    }
}

/// What a [`Store`](crate::Store) answers instead of a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The pool is open in this process.
    #[error(transparent)]
    Library(#[from] Error),
    /// A server has the pool open, and answers this.
    #[error(transparent)]
    Server(Problem),
    /// The server could not be asked.
    #[error("the server of the pool does not answer, or has ended meanwhile: {0}")]
    Connection(#[source] io::Error),
}

impl StoreError {
    /// As a problem document.
    pub fn problem(&self) -> Problem {
        match self {
            StoreError::Library(e) => e.into(),
            StoreError::Server(problem) => problem.clone(),
            StoreError::Connection(e) => {
                Problem::new(503, e.raw_os_error().unwrap_or(libc::EIO), Code::Failed, self.to_string())
            }
        }
    }

    /// The error number a C program would see.
    pub fn errno(&self) -> i32 {
        self.problem().errno
    }
}

impl From<Problem> for StoreError {
    fn from(problem: Problem) -> StoreError {
        StoreError::Server(problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_number_and_its_meaning_on_the_way() {
        for (error, status, code) in [
            (Error::NotFound, 404, Code::Failed),
            (Error::Exists, 409, Code::Failed),
            (Error::NoSpace, 507, Code::Failed),
            (Error::Interrupted, 409, Code::Interrupted),
            (Error::corrupt(pagestone::Place::Superblock, "checksum"), 500, Code::Damaged),
        ] {
            let problem = Problem::from(&error);
            assert_eq!((problem.status, problem.code, problem.errno), (status, code, error.errno()));
            assert_eq!(problem.detail, error.to_string());
            let text = serde_json::to_string(&problem).expect("JSON");
            assert_eq!(serde_json::from_str::<Problem>(&text).expect("JSON"), problem);
        }
    }
}
