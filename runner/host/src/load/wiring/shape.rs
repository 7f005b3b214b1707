//! Symbolic shapes: `B,T,V` against `N,V`, symbols bound to numbers over a whole stage.
//!
//! `B` (examples) means the same everywhere in a stage; every other symbol belongs to one instance and meets others
//! only where ports are connected. `N` is the flattened row axis: one or more leading axes of its source. `*` fits
//! anything. A binding never changes, so the order of connections decides which end a clash is blamed on, not whether.

use std::collections::HashMap;

/// Scope of symbols that mean the same in the whole stage.
const STAGE: usize = usize::MAX;

/// One axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dim {
    Number(i64),
    Symbol(usize),
    Any,
}

#[derive(Clone, Debug)]
enum Binding {
    Free,
    Number(i64),
    Same(usize),
    /// A flattened axis of two or more.
    Product(Vec<Dim>),
}

#[derive(Clone, Debug)]
struct Symbol {
    name: String,
    binding: Binding,
    /// The connection that bound it.
    from: Option<String>,
}

/// Two sizes that cannot be equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clash {
    /// Axis as the consumer writes it.
    pub axis: String,
    /// Size on the consumer's side.
    pub wanted: String,
    /// Where that size comes from, if a symbol was bound earlier.
    pub wanted_from: Option<String>,
    /// Size on the source's side.
    pub found: String,
}

/// All symbols of a stage.
#[derive(Clone, Default)]
pub(super) struct Shapes {
    places: HashMap<(usize, String), usize>,
    symbols: Vec<Symbol>,
}

impl Shapes {
    /// The symbol of this name in an instance's scope.
    pub fn symbol(&mut self, scope: usize, name: &str) -> Dim {
        let scope = if name == "B" { STAGE } else { scope };
        let symbols = &mut self.symbols;
        let place = *self.places.entry((scope, name.to_owned())).or_insert_with(|| {
            symbols.push(Symbol { name: name.to_owned(), binding: Binding::Free, from: None });
            symbols.len() - 1
        });
        Dim::Symbol(place)
    }

    /// A symbol of the whole stage.
    pub fn shared(&mut self, name: &str) -> Dim {
        self.symbol(STAGE, name)
    }

    /// The axes of a port's shape; `None` for `*`, which fits any shape.
    pub fn axes(&mut self, scope: usize, shape: &str) -> Option<Vec<Dim>> {
        if shape.trim() == "*" {
            return None;
        }
        let axes = shape.split(',').map(str::trim).filter(|axis| !axis.is_empty());
        Some(
            axes.map(|axis| match (axis, axis.parse::<i64>()) {
                ("*", _) => Dim::Any,
                (_, Ok(number)) => Dim::Number(number),
                (name, Err(_)) => self.symbol(scope, name),
            })
            .collect(),
        )
    }

    /// Connects a source's axes to a consumer's port. `origin` names the connection for later clashes.
    pub fn connect(&mut self, consumer: &[Dim], source: &[Dim], origin: &str) -> Result<(), Clash> {
        let extra = source.len().checked_sub(consumer.len());
        let flattens = consumer.first().is_some_and(|d| self.name(d) == "N");
        let (rows, tail) = match extra {
            Some(0) => (0, source),
            Some(extra) if flattens => (extra + 1, source.get(extra + 1..).unwrap_or_default()),
            _ => {
                let (wanted, found) = (consumer.len(), source.len());
                return Err(Clash {
                    axis: "number of axes".into(),
                    wanted: wanted.to_string(),
                    wanted_from: None,
                    found: found.to_string(),
                });
            }
        };
        if rows > 0
            && let Some(row_axis) = consumer.first()
        {
            self.flatten(row_axis, source.get(..rows).unwrap_or_default(), origin)?;
        }
        let own = consumer.get(usize::from(rows > 0)..).unwrap_or_default();
        own.iter().zip(tail).try_for_each(|(c, s)| self.unify(c, s, origin))
    }

    fn root(&self, mut place: usize) -> usize {
        while let Some(Symbol { binding: Binding::Same(next), .. }) = self.symbols.get(place) {
            place = *next;
        }
        place
    }

    fn name(&self, dim: &Dim) -> &str {
        match dim {
            Dim::Symbol(place) => self.symbols.get(*place).map_or("", |s| s.name.as_str()),
            _ => "",
        }
    }

    /// The number behind an axis, if known.
    pub fn number(&self, dim: &Dim) -> Option<i64> {
        match dim {
            Dim::Number(number) => Some(*number),
            Dim::Any => None,
            Dim::Symbol(place) => match &self.symbols.get(self.root(*place))?.binding {
                Binding::Number(number) => Some(*number),
                Binding::Product(axes) => {
                    axes.iter().try_fold(1i64, |p, d| p.checked_mul(self.number(d)?))
                }
                _ => None,
            },
        }
    }

    /// An axis as people read it: `10`, `B*T`, `V`.
    pub fn text(&self, dim: &Dim) -> String {
        if let Some(number) = self.number(dim) {
            return number.to_string();
        }
        let Dim::Symbol(place) = dim else { return "*".into() };
        match self.symbols.get(self.root(*place)) {
            Some(Symbol { binding: Binding::Product(axes), .. }) => {
                axes.iter().map(|d| self.text(d)).collect::<Vec<_>>().join("*")
            }
            Some(symbol) => symbol.name.clone(),
            None => "*".into(),
        }
    }

    /// A shape as people read it.
    pub fn shape_text(&self, axes: &[Dim]) -> String {
        axes.iter().map(|d| self.text(d)).collect::<Vec<_>>().join(",")
    }

    fn clash(&self, consumer: &Dim, source: &Dim) -> Clash {
        let wanted_from = match consumer {
            Dim::Symbol(place) => self.symbols.get(self.root(*place)).and_then(|s| s.from.clone()),
            _ => None,
        };
        let name = self.name(consumer);
        Clash {
            axis: if name.is_empty() { self.text(consumer) } else { name.to_owned() },
            wanted: self.text(consumer),
            wanted_from,
            found: self.text(source),
        }
    }

    fn bind(&mut self, place: usize, binding: Binding, origin: &str) {
        if let Some(symbol) = self.symbols.get_mut(place) {
            symbol.binding = binding;
            symbol.from.get_or_insert_with(|| origin.to_owned());
        }
    }

    fn binding(&self, place: usize) -> Binding {
        self.symbols.get(place).map_or(Binding::Free, |s| s.binding.clone())
    }

    /// Makes two axes equal.
    fn unify(&mut self, consumer: &Dim, source: &Dim, origin: &str) -> Result<(), Clash> {
        match (consumer, source) {
            (Dim::Any, _) | (_, Dim::Any) => Ok(()),
            (Dim::Number(a), Dim::Number(b)) if a == b => Ok(()),
            (Dim::Number(_), Dim::Number(_)) => Err(self.clash(consumer, source)),
            (Dim::Symbol(place), Dim::Number(number))
            | (Dim::Number(number), Dim::Symbol(place)) => {
                let root = self.root(*place);
                match self.binding(root) {
                    Binding::Free => {
                        self.bind(root, Binding::Number(*number), origin);
                        Ok(())
                    }
                    _ => match self.number(&Dim::Symbol(root)) {
                        Some(known) if known != *number => Err(self.clash(consumer, source)),
                        _ => Ok(()),
                    },
                }
            }
            (Dim::Symbol(a), Dim::Symbol(b)) => self.unify_symbols(*a, *b, origin),
        }
    }

    fn unify_symbols(&mut self, consumer: usize, source: usize, origin: &str) -> Result<(), Clash> {
        let (a, b) = (self.root(consumer), self.root(source));
        if a == b {
            return Ok(());
        }
        match (self.binding(a), self.binding(b)) {
            // A symbol cannot equal a product of which it is a factor (`B` and `B*T`).
            (Binding::Free, Binding::Product(axes)) if self.contains(&axes, a) => {
                Err(self.clash(&Dim::Symbol(consumer), &Dim::Symbol(source)))
            }
            (Binding::Product(axes), Binding::Free) if self.contains(&axes, b) => {
                Err(self.clash(&Dim::Symbol(consumer), &Dim::Symbol(source)))
            }
            (Binding::Free, _) => {
                self.bind(a, Binding::Same(b), origin);
                Ok(())
            }
            (_, Binding::Free) => {
                self.bind(b, Binding::Same(a), origin);
                Ok(())
            }
            (Binding::Product(x), Binding::Product(y)) => {
                self.unify_products(consumer, &x, &y, origin)
            }
            _ => match (self.number(&Dim::Symbol(a)), self.number(&Dim::Symbol(b))) {
                (Some(x), Some(y)) if x != y => {
                    Err(self.clash(&Dim::Symbol(consumer), &Dim::Symbol(source)))
                }
                _ => Ok(()),
            },
        }
    }

    fn contains(&self, axes: &[Dim], root: usize) -> bool {
        axes.iter().any(|d| matches!(d, Dim::Symbol(p) if self.root(*p) == root))
    }

    fn unify_products(
        &mut self,
        consumer: usize,
        x: &[Dim],
        y: &[Dim],
        origin: &str,
    ) -> Result<(), Clash> {
        if x.len() == y.len() {
            return x.iter().zip(y).try_for_each(|(a, b)| self.unify(a, b, origin));
        }
        let text = |axes: &[Dim]| axes.iter().map(|d| self.text(d)).collect::<Vec<_>>().join("*");
        Err(Clash {
            axis: self.name(&Dim::Symbol(consumer)).to_owned(),
            wanted: text(x),
            wanted_from: self.symbols.get(self.root(consumer)).and_then(|s| s.from.clone()),
            found: text(y),
        })
    }

    /// Binds a row axis to the leading axes that are flattened into it.
    fn flatten(&mut self, row_axis: &Dim, leading: &[Dim], origin: &str) -> Result<(), Clash> {
        let [_, _, ..] = leading else {
            return leading.iter().try_for_each(|d| self.unify(row_axis, d, origin));
        };
        let Dim::Symbol(place) = row_axis else { return Ok(()) };
        let root = self.root(*place);
        let clash = |shapes: &Self| Clash {
            axis: shapes.name(row_axis).to_owned(),
            wanted: shapes.text(row_axis),
            wanted_from: shapes.symbols.get(root).and_then(|s| s.from.clone()),
            found: leading.iter().map(|d| shapes.text(d)).collect::<Vec<_>>().join("*"),
        };
        if self.contains(leading, root) {
            return Err(clash(self));
        }
        match self.binding(root) {
            Binding::Free => {
                self.bind(root, Binding::Product(leading.to_vec()), origin);
                Ok(())
            }
            Binding::Product(known) => self.unify_products(*place, &known, leading, origin),
            Binding::Number(known) => {
                let product = leading.iter().try_fold(1i64, |p, d| p.checked_mul(self.number(d)?));
                if product.is_some_and(|p| p != known) { Err(clash(self)) } else { Ok(()) }
            }
            Binding::Same(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connects sources to the ports of one consumer (scope 9); sources live in scopes 0, 1, ...
    fn connect(pairs: &[(&str, &str)]) -> Result<(), Clash> {
        let mut shapes = Shapes::default();
        pairs.iter().enumerate().try_for_each(|(scope, (port, source))| {
            let (Some(port), Some(source)) = (shapes.axes(9, port), shapes.axes(scope, source))
            else {
                return Ok(());
            };
            shapes.connect(&port, &source, &format!("source {scope}"))
        })
    }

    #[test]
    fn a_row_axis_takes_batches_and_flattened_sequences() {
        for source in ["B,10", "N,10", "B,T,10", "B,C,T,10"] {
            assert_eq!(connect(&[("N,V", source)]), Ok(()), "{source}");
        }
        assert_eq!(connect(&[("N,V", "B,T,10"), ("N,V", "B,T,10"), ("N", "B,T")]), Ok(()));
        assert_eq!(connect(&[("N,V", "B,10"), ("N", "B")]), Ok(()));
        assert_eq!(connect(&[("*", "B,3,4"), ("N,*", "B,7"), ("", "")]), Ok(()));
    }

    #[test]
    fn sizes_that_differ_clash_and_name_the_first_end() {
        let clash = connect(&[("N,V", "B,10"), ("N,V", "B,12")]).unwrap_err();
        assert_eq!(
            clash,
            Clash {
                axis: "V".into(),
                wanted: "10".into(),
                wanted_from: Some("source 0".into()),
                found: "12".into()
            }
        );
        assert!(connect(&[("B,3", "B,4")]).is_err());
        assert!(connect(&[("N,V", "B")]).is_err(), "no axis left");
        assert!(connect(&[("B,V", "B,T,V")]).is_err(), "only N flattens");
    }

    #[test]
    fn one_label_per_example_does_not_serve_flattened_sequences() {
        for pairs in [[("N,V", "B,T,10"), ("N", "B")], [("N", "B"), ("N,V", "B,T,10")]] {
            let clash = connect(&pairs).unwrap_err();
            assert_eq!(clash.axis, "N", "{clash:?}");
        }
    }

    #[test]
    fn symbols_of_different_instances_are_different_until_connected() {
        let mut shapes = Shapes::default();
        let image = shapes.axes(0, "B,3,H,W").unwrap();
        let hidden = shapes.axes(1, "B,H").unwrap();
        let number = shapes.axes(2, "B,3,28,28").unwrap();
        shapes.connect(&image, &number, "images").unwrap();
        let width = shapes.axes(3, "B,64").unwrap();
        shapes.connect(&hidden, &width, "hidden").unwrap();
        assert_eq!(shapes.shape_text(&image), "B,3,28,28");
        assert_eq!(shapes.shape_text(&hidden), "B,64");
    }

    #[test]
    fn a_size_learnt_through_two_symbols_still_clashes() {
        let mut shapes = Shapes::default();
        let (student, teacher) = (shapes.axes(0, "B,V").unwrap(), shapes.axes(1, "B,V").unwrap());
        let loss = shapes.axes(2, "N,V").unwrap();
        shapes.connect(&loss, &student, "student").unwrap();
        shapes.connect(&loss, &teacher, "teacher").unwrap();
        let (ten, twelve) = (shapes.axes(3, "B,10").unwrap(), shapes.axes(4, "B,12").unwrap());
        shapes.connect(&student, &ten, "ten").unwrap();
        assert!(shapes.connect(&teacher, &twelve, "twelve").is_err());
    }
}
