//! Lines that are no good.

use overlay_agent::provision::token::Token;
use overlay_lab::{Lab, Machine};

use crate::support::{boot, configuration, first, install, refusal, token, wait_until_fine};

#[test]
fn a_token_that_is_wrong_expired_or_altered_changes_nothing() {
    let lab = Lab::builder().start().unwrap();
    let one = first(&lab);
    let two = boot(&lab, 1);
    install(&two);
    let before = configuration(&two);
    let good = token(&one);

    let expired = Token { expires: 1_000_000_000, ..good.parse().unwrap() }.encode();
    let mut altered = good.clone();
    let middle = altered.len() / 2;
    let other = if &altered[middle..=middle] == "A" { "B" } else { "A" };
    altered.replace_range(middle..=middle, other);
    for (line, words) in [
        ("hello", "this is no join token"),
        (&altered, "cut off or altered"),
        (&good[..good.len() / 2], "cut off or altered"),
        (&expired, "the join token expired"),
    ] {
        let (code, said) = refusal(&two, &["join", "-"], line);
        assert_eq!(code, 65, "{said}");
        assert!(said.contains(words), "{said}");
        assert!(!said.contains(line), "the token is in {said}");
        assert_eq!(configuration(&two), before);
    }

    // Of another overlay's authority: what it opens is not this etcd.
    let mut strange: Token = good.parse().unwrap();
    let authority =
        overlay_agent::authority::pki::Authority::new(std::time::Duration::from_hours(1)).unwrap();
    let client = authority.client("stranger", std::time::Duration::from_hours(1)).unwrap();
    let tls = strange.tls.as_mut().unwrap().client.as_mut().unwrap();
    (tls.certificate, tls.key) = (client.certificate, client.key);
    let (code, said) = refusal(&two, &["join", "-"], &strange.encode());
    assert_eq!(code, 69, "{said}");
    assert_eq!(configuration(&two), before);

    let (code, said) = refusal(&two, &["join", "/no/such/file"], "");
    assert_eq!(code, 66, "{said}");

    two.command("overlay-agent").unwrap().args(["join", "-"]).input(good).run().unwrap();
    wait_until_fine(&two);
    // With what it has now it comes in for good; what was in the token does not stay, and no other host has it.
    let name = |machine: &Machine<'_>| {
        machine.shell("openssl x509 -noout -subject -in /etc/overlay/pki/client.pem").unwrap()
    };
    assert!(name(&two).contains("CN = overlay-host/"), "{}", name(&two));
    assert_ne!(name(&one), name(&two));
    // A second time, it is let in as it is.
    let before = configuration(&two);
    two.command("overlay-agent").unwrap().args(["join", "-"]).input(token(&one)).run().unwrap();
    assert_eq!(configuration(&two), before);
}
