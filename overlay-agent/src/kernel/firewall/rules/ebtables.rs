/// Whether there are tables of the older `ebtables`, by the kernel's list of modules.
pub(super) fn is_used(modules: &str) -> bool {
    modules.lines().any(|module| {
        ["ebtable_filter ", "ebtable_nat ", "ebtable_broute "]
            .iter()
            .any(|table| module.starts_with(table))
    })
}

/// What an operator is told of everything in the output of `ebtables-save` that may do more than accept a frame. Which
/// frames it is about is not looked at.
pub(super) fn effects(text: &str) -> Vec<String> {
    let chains: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next()).collect();
    let mut table = "";
    let mut effects = Vec::new();
    for line in text.lines().map(str::trim) {
        match line.strip_prefix('*') {
            Some(name) => table = name,
            None if is_harmless(line, &chains) => {}
            None => effects.push(format!("ebtables {table}: {line}")),
        }
    }
    effects
}

fn is_harmless(line: &str, chains: &[&str]) -> bool {
    if let Some(chain) = line.strip_prefix(':') {
        return matches!(chain.split(' ').nth(1), Some("ACCEPT" | "RETURN" | "CONTINUE"));
    }
    if line.is_empty() || line.starts_with('#') || line == "COMMIT" {
        return true;
    }
    // What is logged is so whatever the target.
    if [" --log", " --nflog", " --ulog"].iter().any(|option| line.contains(option)) {
        return false;
    }
    let target = line.split(' ').skip_while(|word| *word != "-j").nth(1);
    target.is_some_and(|target| {
        ["ACCEPT", "RETURN", "CONTINUE"].contains(&target) || chains.contains(&target)
    })
}
