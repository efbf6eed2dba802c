//! Notices that the network under this node may be another one: links, addresses and default routes changed, or the machine slept.

use super::NetlinkError;
use futures::StreamExt;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{RouteNetlinkMessage, route::RouteMessage},
};
use tokio::{sync::mpsc, task::AbortHandle};

/// Tells when a link, an address or a default route of this namespace changed. Several changes may come as one.
#[derive(Debug)]
pub struct NetworkWatch {
    changes: mpsc::Receiver<()>,
    tasks: [AbortHandle; 2],
}

impl NetworkWatch {
    /// Listens, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(|source| {
                NetlinkError::Failed {
                    what: "watch the network".into(),
                    source,
                }
            })?;
        // One slot: a change that finds it full is already announced.
        let (changed, changes) = mpsc::channel(1);
        let reading = tokio::spawn(connection);
        let telling = tokio::spawn(async move {
            while let Some((message, _)) = messages.next().await {
                if matters(&message) {
                    let _ = changed.try_send(());
                }
            }
        });
        Ok(Self {
            changes,
            tasks: [reading.abort_handle(), telling.abort_handle()],
        })
    }

    /// Waits for the next change; `None` when the kernel closed the socket.
    pub async fn changed(&mut self) -> Option<()> {
        self.changes.recv().await
    }
}

impl Drop for NetworkWatch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Of routes only the default ones: a router's tables change all the time.
fn matters(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    let is_default = |route: &RouteMessage| route.header.destination_prefix_length == 0;
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => is_default(route),
        _ => true,
    }
}
