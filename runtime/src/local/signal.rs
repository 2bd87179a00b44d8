//! Stop signals, as images and CRI name them.

use std::str::FromStr;

use decapod_proto::cri;
use nix::sys::signal::Signal;

use crate::error::{Error, Result};

/// The signal that asks a container to end: the pod's word, the image's, or SIGTERM.
pub(super) fn stop_signal(config: &cri::ContainerConfig, image: &str) -> Result<i32> {
    match config.stop_signal() {
        cri::Signal::RuntimeDefault if image.is_empty() => Ok(libc::SIGTERM),
        cri::Signal::RuntimeDefault => parse(image),
        signal => parse(signal.as_str_name()),
    }
}

/// Reads `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` or `SIGRTMINPLUS3`.
fn parse(text: &str) -> Result<i32> {
    let invalid = || Error::invalid("stop_signal", format!("{text:?} is not a signal"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(invalid()) };
    }
    let upper = text.to_ascii_uppercase().replace("PLUS", "+").replace("MINUS", "-");
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    if let Some(rest) = short.strip_prefix("RTMIN") {
        return offset(rest).filter(|n| (0..=30).contains(n)).map(|n| 34 + n).ok_or_else(invalid);
    }
    if let Some(rest) = short.strip_prefix("RTMAX") {
        return offset(rest).filter(|n| (-30..=0).contains(n)).map(|n| 64 + n).ok_or_else(invalid);
    }
    let name = match short {
        // Other names of the same signals.
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        name => name,
    };
    Signal::from_str(&format!("SIG{name}")).map(|signal| signal as i32).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_understood() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("SIGRTMINPLUS3", 37),
            ("SIGRTMAXMINUS1", 63),
            ("SIGIOT", 6),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "SIGNONE", "0", "65", "SIGRTMIN+99"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_pod_goes_before_the_image() {
        let config = cri::ContainerConfig { stop_signal: cri::Signal::Sigusr1.into(), ..Default::default() };
        assert_eq!(stop_signal(&config, "SIGQUIT").unwrap(), 10);
        assert_eq!(stop_signal(&Default::default(), "SIGQUIT").unwrap(), 3);
        assert_eq!(stop_signal(&Default::default(), "").unwrap(), 15);
    }
}
