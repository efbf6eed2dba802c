//! Which method and path is which question, and how a refusal looks in HTTP.

use super::{Answer, NodeApi, NodeControl};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Query, Request, State},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use overlay_types::{
    Name,
    api::{
        AddPort, ApiError, AttachLan, CreateInvite, CreateNetwork, JoinNetwork, LeaveNetwork, Ping,
        RemovePort,
    },
    why::Why,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::sync::Arc;

/// No question of ours comes near it; an invite is under 4 KiB.
const BODY_BYTES_MAX: usize = 64 << 10;

/// A member's questions.
pub(super) fn member<A: NodeApi>(api: Arc<A>) -> Router {
    Router::new()
        .route("/v1/networks", post(create_network::<A>))
        .route("/v1/networks/join", post(join_network::<A>))
        .route("/v1/networks/leave", post(leave_network::<A>))
        .route("/v1/invites", post(create_invite::<A>))
        .route("/v1/peers", get(peers::<A>))
        .route("/v1/leases", get(leases::<A>))
        .route("/v1/ping", post(ping::<A>))
        .route("/v1/why", post(why::<A>))
        .route("/v1/doctor", get(doctor::<A>))
        .route("/v1/ports", get(ports::<A>).post(add_port::<A>))
        .route("/v1/ports/remove", post(remove_port::<A>))
        .route("/v1/lan", get(lans::<A>))
        .route("/v1/lan/attach", post(attach_lan::<A>))
        .route("/v1/lan/detach", post(detach_lan::<A>))
        .with_state(Arc::clone(&api))
        .merge(control(api))
        .fallback(async || {
            Refused(
                StatusCode::NOT_FOUND,
                "this node does not know that question; is its version the command's?".into(),
            )
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// An infrastructure node's questions.
pub(super) fn fabric<A: NodeControl>(api: Arc<A>) -> Router {
    control(api)
        .fallback(async || {
            let why = "this is a fabric node, in nobody's network; ask a member, which is a node started by `farlan up`";
            Refused(StatusCode::NOT_FOUND, why.into())
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

fn control<A: NodeControl>(api: Arc<A>) -> Router {
    Router::new()
        .route("/v1/status", get(status::<A>))
        .route("/v1/down", post(down::<A>))
        .with_state(api)
}

type Api<A> = State<Arc<A>>;

async fn status<A: NodeControl>(State(api): Api<A>) -> Response {
    respond(api.status().await)
}

async fn down<A: NodeControl>(State(api): Api<A>) -> Response {
    respond(api.down().await)
}

async fn create_network<A: NodeApi>(
    State(api): Api<A>,
    Body(request): Body<CreateNetwork>,
) -> Response {
    respond(api.create_network(request).await)
}

async fn join_network<A: NodeApi>(
    State(api): Api<A>,
    Body(request): Body<JoinNetwork>,
) -> Response {
    respond(api.join_network(request).await)
}

async fn leave_network<A: NodeApi>(
    State(api): Api<A>,
    Body(request): Body<LeaveNetwork>,
) -> Response {
    respond(api.leave_network(request).await)
}

async fn create_invite<A: NodeApi>(
    State(api): Api<A>,
    Scope(network): Scope,
    Body(request): Body<CreateInvite>,
) -> Response {
    respond(api.create_invite(network, request).await)
}

async fn peers<A: NodeApi>(State(api): Api<A>, Scope(network): Scope) -> Response {
    respond(api.peers(network).await)
}

async fn leases<A: NodeApi>(State(api): Api<A>, Scope(network): Scope) -> Response {
    respond(api.leases(network).await)
}

async fn ping<A: NodeApi>(
    State(api): Api<A>,
    Scope(network): Scope,
    Body(request): Body<Ping>,
) -> Response {
    respond(api.ping(network, request).await)
}

async fn why<A: NodeApi>(
    State(api): Api<A>,
    Scope(network): Scope,
    Body(request): Body<Why>,
) -> Response {
    respond(api.why(network, request).await)
}

async fn doctor<A: NodeApi>(State(api): Api<A>) -> Response {
    respond(api.doctor().await)
}

async fn ports<A: NodeApi>(State(api): Api<A>, Scope(network): Scope) -> Response {
    respond(api.ports(network).await)
}

async fn add_port<A: NodeApi>(
    State(api): Api<A>,
    Scope(network): Scope,
    Body(request): Body<AddPort>,
) -> Response {
    respond(api.add_port(network, request).await)
}

async fn remove_port<A: NodeApi>(
    State(api): Api<A>,
    Scope(network): Scope,
    Body(request): Body<RemovePort>,
) -> Response {
    respond(api.remove_port(network, request).await)
}

async fn lans<A: NodeApi>(State(api): Api<A>, Scope(network): Scope) -> Response {
    respond(api.lans(network).await)
}

async fn attach_lan<A: NodeApi>(
    State(api): Api<A>,
    Scope(network): Scope,
    Body(request): Body<AttachLan>,
) -> Response {
    respond(api.attach_lan(network, request).await)
}

async fn detach_lan<A: NodeApi>(State(api): Api<A>, Scope(network): Scope) -> Response {
    respond(api.detach_lan(network).await)
}

/// `?network=NAME`, refused in our own words.
struct Scope(Option<Name>);

#[derive(Deserialize)]
struct ScopeQuery {
    network: Option<Name>,
}

impl<S: Send + Sync> FromRequestParts<S> for Scope {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Query::<ScopeQuery>::from_request_parts(parts, state).await {
            Ok(Query(scope)) => Ok(Self(scope.network)),
            Err(rejection) => Err(Refused(StatusCode::BAD_REQUEST, rejection.body_text())),
        }
    }
}

/// A JSON body, refused in our own words.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(Refused(rejection.status(), rejection.body_text())),
        }
    }
}

/// A refusal with its status.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(ApiError { error: self.1 })).into_response()
    }
}

/// The node understood the question and its state does not allow it: 409, whatever the reason; the line says which.
fn respond<T: Serialize>(answer: Answer<T>) -> Response {
    match answer {
        Ok(value) => Json(value).into_response(),
        Err(refusal) => Refused(StatusCode::CONFLICT, refusal.error).into_response(),
    }
}
