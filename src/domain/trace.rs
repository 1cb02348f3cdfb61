//! Assignment of a run to a trace. Each process derives the same trace from the SyncJob alone, and the hash of the run
//! has a copy. The trace therefore survives the loss of Redis or of a process.

use std::fmt;

/// Number of bits of a trace id that W3C Trace Context Level 2 regards as random. A UUID has its version and its
/// variant in the others.
const RANDOM_BITS: u32 = 56;

/// Span in a trace, as in a `traceparent` of W3C Trace Context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace's id, not zero.
    pub trace: u128,
    /// The span's id, not zero.
    pub span: u64,
    /// True when the trace is recorded.
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads a `traceparent`. `None` when it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut hex = |length| {
            let part = parts.next().filter(|part| part.len() == length)?;
            let is_hex = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if is_hex { u128::from_str_radix(part, 16).ok() } else { None }
        };
        let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)? as u64, hex(2)?);
        // Later versions may have more fields after the known ones.
        let is_whole = version != 0xff && (version > 0 || parts.next().is_none());
        (is_whole && trace != 0 && span != 0).then_some(Self { trace, span, is_sampled: flags & 1 == 1 })
    }

    /// Returns the id of the trace as 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.is_sampled))
    }
}

/// Selection of the traces that are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Share of all traces that are sampled, from 0 to 1.
    pub share: f64,
    /// True when the sampling decision of a caller applies to the runs in its trace.
    pub follows_caller: bool,
}

impl Sampler {
    /// Reads the values of `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`. `None` when they are not known.
    #[must_use]
    pub fn parse(name: &str, argument: Option<&str>) -> Option<Self> {
        let (follows_caller, name) = name.strip_prefix("parentbased_").map_or((false, name), |name| (true, name));
        let share = match name {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => argument.map_or(Ok(1.0), str::parse).ok().filter(|share| (0.0..=1.0).contains(share))?,
            _ => return None,
        };
        Some(Self { share, follows_caller })
    }

    fn takes(&self, trace: u128) -> bool {
        let random = (trace % (1 << RANDOM_BITS)) as f64;
        random >= (1.0 - self.share) * f64::from(RANDOM_BITS).exp2()
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Self { share: 1.0, follows_caller: true }
    }
}

/// The first span of a run, which all others are below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The span.
    pub span: TraceParent,
    /// Parent span, of the caller.
    pub caller: Option<u64>,
}

/// Returns the first span of the run with this uid. It is in the trace of the caller with this `traceparent`, or in a
/// separate trace with the uid as its id. `None` when the uid is no UUID.
#[must_use]
pub fn root(uid: &str, caller: Option<&str>, sampler: &Sampler) -> Option<Root> {
    let uid = u128::from_str_radix(&uid.replace('-', ""), 16).ok().filter(|_| uid.len() == 36)?;
    let span = Some(uid as u64).filter(|span| *span != 0)?;
    let caller = caller.and_then(TraceParent::parse);
    let trace = caller.map_or(uid, |caller| caller.trace);
    let is_sampled = match caller {
        Some(caller) if sampler.follows_caller => caller.is_sampled,
        _ => sampler.takes(trace),
    };
    Some(Root { span: TraceParent { trace, span, is_sampled }, caller: caller.map(|caller| caller.span) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_a_whole_traceparent_is_one() {
        for (text, is_one) in [
            (CALLER, true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", true),
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", false),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", false),
            ("", false),
        ] {
            assert_eq!(TraceParent::parse(text).is_some(), is_one, "{text}");
        }
        assert_eq!(TraceParent::parse(CALLER).unwrap().to_string(), CALLER);
    }

    #[test]
    fn a_run_has_its_uid_as_trace_unless_a_caller_has_one() {
        let own = root(UID, None, &Sampler::default()).unwrap();
        assert_eq!(own.span.to_string(), "00-6ba7b8109dad41d180b400c04fd430c8-80b400c04fd430c8-01");
        assert_eq!(own.caller, None);
        assert_eq!(root(UID, Some("nonsense"), &Sampler::default()), Some(own));
        let called = root(UID, Some(CALLER), &Sampler::default()).unwrap();
        assert_eq!(called.span.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-80b400c04fd430c8-01");
        assert_eq!(called.caller, Some(0x00f0_67aa_0ba9_02b7));
        for no_uuid in ["", "users", "6ba7b8109dad41d180b400c04fd430c8"] {
            assert_eq!(root(no_uuid, None, &Sampler::default()), None);
        }
    }

    #[test]
    fn the_sampler_decides_unless_the_caller_has() {
        let quiet = CALLER.replace("-01", "-00");
        for (name, argument, own, called, quietly) in [
            ("parentbased_always_on", None, true, true, false),
            ("parentbased_always_off", None, false, true, false),
            ("always_on", None, true, true, true),
            ("always_off", None, false, false, false),
            ("traceidratio", Some("0"), false, false, false),
            ("parentbased_traceidratio", Some("1"), true, true, false),
        ] {
            let sampler = Sampler::parse(name, argument).unwrap();
            let is_sampled = |caller| root(UID, caller, &sampler).unwrap().span.is_sampled;
            let decided = (is_sampled(None), is_sampled(Some(CALLER)), is_sampled(Some(&quiet)));
            assert_eq!(decided, (own, called, quietly), "{name}");
        }
        for (name, argument) in [("sometimes", None), ("traceidratio", Some("2")), ("traceidratio", Some("x"))] {
            assert_eq!(Sampler::parse(name, argument), None);
        }
    }

    #[test]
    fn about_as_many_are_sampled_as_asked_for() {
        let sampler = Sampler::parse("traceidratio", Some("0.1")).unwrap();
        // The bits of a UUID's version and variant are the same in all of them.
        let uids = (0..10_000).map(|_| rand::random::<u128>() & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62);
        let taken = uids.filter(|uid| sampler.takes(*uid)).count();
        assert!((800..1200).contains(&taken), "{taken}");
    }
}
