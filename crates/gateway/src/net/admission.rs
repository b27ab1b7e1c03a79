//! How many there may be at a time: in all, and from one client address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use antiphon_metrics::gateway::Refusal;

/// Counts what is open against two bounds.
#[derive(Debug)]
pub(crate) struct Admission {
    max: usize,
    max_per_address: usize,
    // A mutex, not atomics: both counts change together, and only when a connection comes or goes.
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Admission {
    pub(crate) fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        let open = Mutex::default();
        Arc::new(Self { max, max_per_address, open })
    }

    /// A place for one more, until the permit is dropped. `None` stands for a peer that speaks for
    /// many clients (a trusted proxy): it counts in all, not by address.
    pub(crate) fn admit(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Permit, Refusal> {
        let address = address.map(group);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.all >= self.max {
            return Err(Refusal::TotalLimit);
        }
        if let Some(address) = address {
            let count = open.by_address.entry(address).or_default();
            if *count >= self.max_per_address {
                return Err(Refusal::AddressLimit);
            }
            *count += 1;
        }
        open.all += 1;
        drop(open);
        let admission = Arc::clone(self);
        Ok(Permit { admission, address })
    }
}

/// A place taken; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    address: Option<IpAddr>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.admission.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        let Some(address) = self.address else { return };
        if let Some(count) = open.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&address);
            }
        }
    }
}

/// The addresses that one client can choose from: a single IPv4 address, or the /64 that networks
/// hand out as the smallest piece of IPv6 (RFC 6177).
pub(crate) fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_in_all_and_by_address_and_frees_both() {
        let admission = Admission::new(3, 2);
        let admit = |address: &str| admission.admit(address.parse().ok());
        let first = admit("10.0.0.1").expect("free");
        let _second = admit("::ffff:10.0.0.1").expect("the same address, written as IPv6");
        assert_eq!(admit("10.0.0.1").err(), Some(Refusal::AddressLimit));
        let other = admit("2001:db8::1").expect("another address");
        assert_eq!(admit("10.0.0.3").err(), Some(Refusal::TotalLimit));
        drop(first);
        let _again = admit("10.0.0.1").expect("freed");
        drop(other);
        let _proxy = admission.admit(None).expect("a proxy counts in all only");
        assert_eq!(admission.admit(None).err(), Some(Refusal::TotalLimit));
        assert_eq!(admission.open.lock().expect("not poisoned").by_address.len(), 1);
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let admission = Admission::new(9, 1);
        let admit = |address: &str| admission.admit(address.parse().ok());
        let _one = admit("2001:db8::1").expect("free");
        assert!(admit("2001:db8::2").is_err(), "same /64");
        assert!(admit("2001:db8:0:1::2").is_ok(), "another /64");
    }
}
