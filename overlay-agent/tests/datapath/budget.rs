//! What each program may cost the verifier. The kernel gives a million instructions and 512 bytes of stack; what is
//! recorded in `verifier-budget.txt` keeps a change from costing ten times as much unseen, on any kernel.

use std::collections::BTreeMap;

use aya::{
    EbpfLoader, VerifierLogLevel,
    programs::{ProgramError, SchedClassifier},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use overlay_agent::kernel::datapath::Programs;
use overlay_common::Hook;

const BUDGET: &str = include_str!("verifier-budget.txt");

/// `BPF_COMPLEXITY_LIMIT_INSNS`.
const INSTRUCTIONS_LIMIT: u32 = 1_000_000;

/// `MAX_BPF_STACK`.
const STACK_LIMIT: u32 = 512;

/// Instructions that the verifier processes, bytes of stack.
type Cost = (u32, u32);

/// What the verifier says of every program. It speaks of the stack only in its log, which aya hands over only when
/// loading fails: it is made to, after the verifier is done, for want of a file descriptor.
fn costs() -> BTreeMap<&'static str, Cost> {
    let mut ebpf = EbpfLoader::new()
        .verifier_log_level(VerifierLogLevel::STATS)
        .load(Programs::object())
        .unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let mut costs = BTreeMap::new();
    for hook in Hook::ALL {
        let program: &mut SchedClassifier =
            ebpf.program_mut(hook.name()).unwrap().try_into().unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
        let loaded = program.load();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let Err(ProgramError::LoadError { io_error, verifier_log }) = loaded else {
            panic!("{}: {loaded:?}", hook.name());
        };
        let is_accepted = io_error.raw_os_error() == Some(nix::libc::EMFILE);
        assert!(is_accepted, "{} is refused: {io_error}: {verifier_log}", hook.name());
        costs.insert(hook.name(), parse(&verifier_log.to_string()));
    }
    costs
}

/// The two lines that tell: `stack depth 128` and `processed 1234 insns (limit 1000000) …`.
fn parse(log: &str) -> Cost {
    let after = |words: &str| {
        let rest = log.split_once(words).unwrap_or_else(|| panic!("no «{words}» in {log}")).1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    (after("processed "), after("stack depth "))
}

/// What is allowed, by program.
fn budget() -> BTreeMap<&'static str, Cost> {
    BUDGET
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [name, instructions, stack] => {
                Some((name, (instructions.parse().unwrap(), stack.parse().unwrap())))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn no_program_costs_the_verifier_more_than_its_budget() {
    let budget = budget();
    assert_eq!(budget.len(), Hook::ALL.len(), "a budget for each program");
    let mut over = Vec::new();
    for (name, (instructions, stack)) in costs() {
        // `cargo xtask verifier` reads these lines.
        println!("verifier: {name} {instructions} {stack}");
        let allowed = *budget.get(name).unwrap_or_else(|| panic!("no budget for {name}"));
        if instructions > allowed.0 || stack > allowed.1 {
            over.push(format!("{name} took {instructions} and {stack} bytes of {allowed:?}"));
        }
    }
    assert!(over.is_empty(), "{}: if it is worth it, raise verifier-budget.txt", over.join(", "));
}

#[test]
fn every_budget_leaves_half_of_what_the_kernel_gives() {
    for (name, (instructions, stack)) in budget() {
        assert!(instructions <= INSTRUCTIONS_LIMIT / 2 && stack <= STACK_LIMIT / 2, "{name}");
    }
}
