//! Version requirements as Cargo writes them: `^0.2`, `~1.4`, `>=1.0, <2`, `=1.2.3`, `1.*`, `*`.
//!
//! Build metadata is ignored. A pre-release satisfies a requirement only if that names a pre-release too.

use std::cmp::Ordering;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    numbers: [u64; 3],
    /// Numbers that were written, 1 to 3.
    given: usize,
    pre: String,
}

fn parse(text: &str) -> Option<Version> {
    let text = text.trim().split('+').next().unwrap_or_default();
    let (numbers, pre) = text.split_once('-').unwrap_or((text, ""));
    let mut version = Version { numbers: [0; 3], given: 0, pre: pre.to_owned() };
    for part in numbers.split('.') {
        if matches!(part, "*" | "x" | "X") {
            break;
        }
        *version.numbers.get_mut(version.given)? = part.parse().ok()?;
        version.given += 1;
    }
    Some(version)
}

fn compare(a: &Version, b: &Version) -> Ordering {
    // A release follows its pre-releases.
    a.numbers.cmp(&b.numbers).then_with(|| match (a.pre.is_empty(), b.pre.is_empty()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => a.pre.cmp(&b.pre),
    })
}

/// The first version that no longer satisfies `^v`.
fn caret_end(v: &Version) -> [u64; 3] {
    let [major, minor, patch] = v.numbers;
    match (major, minor, v.given) {
        (1.., _, _) | (0, _, 0 | 1) => [major + 1, 0, 0],
        (0, 1.., _) | (0, 0, 2) => [0, minor + 1, 0],
        _ => [0, 0, patch + 1],
    }
}

fn tilde_end(v: &Version) -> [u64; 3] {
    let [major, minor, _] = v.numbers;
    if v.given <= 1 { [major + 1, 0, 0] } else { [major, minor + 1, 0] }
}

/// Whether a version satisfies a requirement; `None` if either cannot be read.
pub fn satisfies(version: &str, requirement: &str) -> Option<bool> {
    let version = parse(version).filter(|v| v.given == 3)?;
    let mut satisfied = true;
    let mut names_pre = version.pre.is_empty();
    for part in requirement.split(',') {
        let part = part.trim();
        let digits = part
            .find(|c: char| !matches!(c, '^' | '~' | '=' | '<' | '>' | ' '))
            .unwrap_or(part.len());
        let (sign, rest) = part.split_at(digits);
        let wanted = parse(rest)?;
        names_pre |= !wanted.pre.is_empty() && wanted.numbers == version.numbers;
        let order = compare(&version, &wanted);
        let below = |end: [u64; 3]| order.is_ge() && version.numbers < end;
        let equal =
            wanted.numbers.iter().zip(&version.numbers).take(wanted.given).all(|(a, b)| a == b);
        satisfied &= match sign.trim() {
            _ if wanted.given == 0 => true,
            ">=" => order.is_ge(),
            ">" if wanted.given < 3 => order.is_gt() && !equal,
            ">" => order.is_gt(),
            "<=" if wanted.given < 3 => order.is_le() || equal,
            "<=" => order.is_le(),
            "<" => order.is_lt(),
            "=" => equal && (wanted.given < 3 || order.is_eq()),
            "~" => below(tilde_end(&wanted)),
            "" if rest.contains('*') => equal,
            "" | "^" => below(caret_end(&wanted)),
            _ => return None,
        };
    }
    Some(satisfied && names_pre)
}

#[cfg(test)]
mod tests {
    use super::satisfies;

    #[test]
    fn requirements_mean_what_cargo_says() {
        let cases = [
            ("0.2.5", "^0.2", true),
            ("0.3.0", "^0.2", false),
            ("0.2.0", "0.2", true),
            ("1.9.0", "^1.2", true),
            ("2.0.0", "^1.2", false),
            ("0.0.3", "^0.0.3", true),
            ("0.0.4", "^0.0.3", false),
            ("1.4.9", "~1.4", true),
            ("1.5.0", "~1.4", false),
            ("1.5.0", ">=1.0, <2", true),
            ("2.0.0", ">=1.0, <2", false),
            ("1.2.3", "=1.2.3", true),
            ("1.2.4", "=1.2", true),
            ("1.2.4", "=1.2.3", false),
            ("7.1.0", "*", true),
            ("1.7.0", "1.*", true),
            ("2.0.0", "1.*", false),
            ("1.0.0-rc.1", "^1.0", false),
            ("1.0.0-rc.2", ">=1.0.0-rc.1", true),
            ("1.3.0", ">1.2", true),
            ("1.2.9", ">1.2", false),
        ];
        for (version, requirement, expected) in cases {
            assert_eq!(satisfies(version, requirement), Some(expected), "{version} {requirement}");
        }
        assert_eq!(satisfies("1.0", "1"), None);
        assert_eq!(satisfies("1.0.0", "!1"), None);
        assert_eq!(satisfies("1.0.0", "one"), None);
    }
}
