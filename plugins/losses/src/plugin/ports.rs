//! The ports of each loss, as its settings shape them.
//!
//! Names are those of losses.md. Equal symbols are checked by the SDK in every call, so a symbol shared by
//! student and teacher *is* the refusal of unequal widths.

use crate::names::layered;
use crate::settings::*;
use limbeck_sdk::{DType, Port, Ports};

const FLAGS: &[DType] = &[DType::I64, DType::U8, DType::I32, DType::F32];

pub fn of(spec: &Spec) -> Ports {
    let ports = match spec {
        Spec::Dense(dense) => dense_ports(dense),
        Spec::CrossEntropy(_) => {
            let ports = Ports::new().with(student_logits()).labelled().with(class_mask());
            ports.with(row_classes())
        }
        Spec::Bce(_) => Ports::new().with(student_logits()).labelled().with(class_mask()),
        Spec::Sparse(sparse) => sparse_ports(sparse),
        Spec::Linear(linear) => linear_ports(linear),
        Spec::Dist(dist) => {
            let teacher = if dist.vocab == Vocab::Strict { "N,V" } else { "N,Vt" };
            let ports = Ports::new().with(student_logits()).input("teacher.logits", teacher);
            ports.counting().with(class_mask())
        }
        Spec::Hidden(hidden) => hidden_ports(hidden),
        Spec::Attention(attention) => attention_ports(attention),
        Spec::Map(map) => map_ports(*map),
        Spec::Batch(batch) => batch_ports(batch),
    };
    ports
        .metric("dead_rows", "share of rows with no live logit on a side")
        .metric("nonfinite_rows", "share of rows whose loss is not finite")
}

fn student_logits() -> Port {
    Port::input("student.logits", "N,V")
        .differentiable()
        .grad_may_alias()
        .doc("the student's scores before the softmax")
}

fn class_mask() -> Port {
    Port::input("class_mask", "V").dtypes(FLAGS).optional().doc("0: the column leaves both sides")
}

fn row_classes() -> Port {
    let doc = "0: the column leaves the softmax of that row; a batch column of streams whose tasks have own classes";
    Port::input("row_classes", "N,V").dtypes(FLAGS).optional().doc(doc)
}

fn dense_ports(dense: &Dense) -> Ports {
    let uld = dense.divergence == Divergence::Uld;
    let teacher = if dense.vocab == Vocab::Strict && !uld { "N,V" } else { "N,Vt" };
    let ports = Ports::new().with(student_logits()).with(
        Port::input("teacher.logits", teacher).doc("the teacher's scores before the softmax"),
    );
    let ports = if dense.divergence.needs_labels() { ports.labelled() } else { ports.counting() };
    if uld { ports } else { ports.with(class_mask()) }
}

fn linear_ports(linear: &Linear) -> Ports {
    let width = if linear.dense.vocab == Vocab::Strict { "V" } else { "Vt" };
    let head = "bind it to the student's output layer, such as student.params.lm_head.weight";
    let teacher = |name: &str, shape: String| Port::input(name, shape).optional();
    let ports = Ports::new()
        .with(Port::input("student.hidden", "N,H").differentiable().doc("states under the head"))
        .with(Port::input("student.head", "V,H").differentiable().doc(head))
        .with(teacher("teacher.logits", format!("N,{width}")).doc("or the two below"))
        .with(teacher("teacher.hidden", "N,Ht".into()).doc("the teacher's states"))
        .with(teacher("teacher.head", format!("{width},Ht")).doc("the teacher's head, constant"));
    // Products are as large as the number of rows that count, which is not to be waited for.
    Ports::new().counting().iter().fold(ports, |ports, port| ports.with(port.clone().host_memory()))
}

fn sparse_ports(sparse: &Sparse) -> Ports {
    let indices = Port::input("teacher.topk.indices", "N,K").dtypes(&[DType::I64, DType::I32]);
    let tail = Port::input("teacher.topk.tail", "N").doc("log of the mass outside the kept set");
    let needed = sparse.mode == SparseMode::Tail && sparse.values == TopkValues::Logits;
    Ports::new()
        .with(student_logits())
        .with(indices.doc("kept columns; -1: absent"))
        .with(Port::input("teacher.topk.values", "N,K").doc("log-probabilities or logits"))
        .with(if needed { tail } else { tail.optional() })
        .counting()
}

/// Adds a port unless another pair of layers has it already.
fn once(ports: Ports, port: Port) -> Ports {
    if ports.input_index(port.name()).is_some() { ports } else { ports.with(port) }
}

fn pairs(layers: &Layers) -> Vec<(Option<u32>, Option<u32>)> {
    match layers.is_empty() {
        true => vec![(None, None)],
        false => layers.iter().map(|pair| (Some(pair[0]), Some(pair[1]))).collect(),
    }
}

fn hidden_ports(hidden: &Hidden) -> Ports {
    let mapped = matches!(hidden.kind, HiddenKind::Mse { projector: Projector::Linear, .. });
    let teacher_shape = if mapped { "N,Ht" } else { "N,H" };
    let mut ports = Ports::new();
    for (student, teacher) in pairs(&hidden.layers) {
        let student = Port::input(layered("student.hidden", student), "N,H").differentiable();
        ports = once(ports, student);
        ports = once(ports, Port::input(layered("teacher.hidden", teacher), teacher_shape));
    }
    let targets = Port::input("targets", "N").dtypes(FLAGS).optional();
    match hidden.kind {
        HiddenKind::Cosine { .. } => {
            ports.counting().with(targets.doc("-1: the row is to point elsewhere"))
        }
        _ => ports.counting(),
    }
}

fn row_mask() -> Port {
    Port::input("row_mask", "B").dtypes(FLAGS).optional().doc("0: ignored")
}

fn attention_ports(attention: &Attention) -> Ports {
    let (port, student_shape, teacher_shape) = match attention.kind {
        AttentionKind::ValueRelation => ("value", "B,A,T,D", "B,A,T,Dt"),
        _ => ("attention", "B,A,T,T", "B,A,T,T"),
    };
    let mut ports = Ports::new();
    for (student, teacher) in pairs(&attention.layers) {
        let student = Port::input(layered(&format!("student.{port}"), student), student_shape);
        ports = once(ports, student.differentiable());
        let teacher = layered(&format!("teacher.{port}"), teacher);
        ports = once(ports, Port::input(teacher, teacher_shape));
    }
    let mask = Port::input("attention_mask", "B,T").dtypes(FLAGS).optional();
    ports.with(row_mask()).with(mask.doc("0: no key and no query"))
}

fn map_ports(map: FeatureMap) -> Ports {
    let (student, teacher) = match map {
        FeatureMap::Gram | FeatureMap::Fsp => ("B,C,P", "B,C,Pt"),
        FeatureMap::Nst | FeatureMap::At { .. } => ("B,C,P", "B,Ct,P"),
    };
    let ports = Ports::new().input_grad("student.map", student).input("teacher.map", teacher);
    let ports = match map {
        FeatureMap::Fsp => {
            ports.input_grad("student.map2", "B,C2,P").input("teacher.map2", "B,C2,Pt")
        }
        _ => ports,
    };
    ports.with(row_mask())
}

fn batch_ports(batch: &Batch) -> Ports {
    let ports = Ports::new().input_grad("student.hidden", "N,H");
    let ports = match batch {
        Batch::Mmd { .. } | Batch::Coral => {
            let domain = Port::input("domain", "N").dtypes(&[DType::I64]).optional();
            let teacher = Port::input("teacher.hidden", "M,H").optional();
            ports
                .with(teacher.doc("the second set, constant"))
                .with(domain.doc("0: first set, 1: second set, both trained"))
        }
        Batch::InfoNce { .. } | Batch::Crd { .. } => ports.input("teacher.hidden", "N,H"),
        _ => ports.input("teacher.hidden", "N,Ht"),
    };
    ports.counting()
}
