//! Attacks that somebody watches, step by step: on the bare classifier, then through the defence.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::Instant,
};

use serde::Serialize;
use talion_attacks::{Attack, AttackSpec, Batch, Conditions, Passes};
use talion_core::{Budget, Classifier, Error, Objective, Result};
use talion_defenses::{Defended, GradientMode};
use tch::{Device, Tensor};
use tokio::sync::mpsc;

use crate::{
    app::SuspicionFacts,
    guard::{Guard, ModelFacts, Verdict, Wants, Yardstick},
    pixels::{data_url, signed},
};

/// Attacks that the page offers, with what they are called there. The first is what it begins with.
pub const OFFERED: [(&str, &str); 7] = [
    ("pgd-20", "Projected Gradient Descent, 20 steps"),
    ("fgsm", "Fast Gradient Sign Method, one step"),
    ("bim-20", "Basic Iterative Method, 20 steps"),
    ("mim-20", "Momentum Iterative Method, 20 steps"),
    ("apgd-ce-20", "Auto-PGD on cross-entropy, 20 steps"),
    ("square-200", "Square attack, 200 queries, no gradients"),
    ("noise", "Random noise: the control, no attack"),
];
/// Budgets that the page offers, in Linf.
pub const BUDGETS: [&str; 5] = ["8/255", "2/255", "4/255", "16/255", "0.1"];
/// Dearest attack that is run for a visitor, in passes a target.
const MOST_PASSES: u64 = 500;
/// Steps that are shown of one target, at most; of longer attacks every second step, or every third, and so on.
const MOST_FRAMES: u32 = 60;
/// Sessions that wait or run, and whose events may lie about unread.
const SESSIONS: usize = 4;
/// Events of a session at most: two targets, and what is around them. So many fit into its channel, and a visitor who does not read
/// cannot hold up the thread.
const EVENTS: usize = 2 * (MOST_FRAMES as usize + 2) + 4;

/// What a visitor wants to see.
#[derive(Debug)]
pub struct Wish {
    /// `[C, H, W]` in `[0, 1]`.
    pub image: Vec<f32>,
    /// Key of the attack's random draws.
    pub id: u64,
    /// The true class, and who says so; the bare classifier's answer if nobody does.
    pub label: Option<(usize, LabelFrom)>,
    /// The attack.
    pub attack: AttackSpec,
    /// How far it may go.
    pub budget: Budget,
    /// Of its random draws.
    pub seed: u64,
}

impl Wish {
    /// Whether this server attacks so.
    ///
    /// # Errors
    /// If the attack is too dear, or not defined for the budget's norm.
    pub fn check(&self) -> Result<()> {
        let cost = self.attack.cost();
        let passes = cost.forward.max(cost.backward);
        if passes > MOST_PASSES {
            let expected = format!("at most {MOST_PASSES} passes here; `talion attack` has no such limit");
            return Err(Error::range(format!("the cost of {}", self.attack), expected, passes));
        }
        let norms = self.attack.entry().map_or(&[][..], |entry| entry.norms);
        if norms.contains(&self.budget.norm()) {
            return Ok(());
        }
        let known: Vec<String> = norms.iter().map(ToString::to_string).collect();
        Err(Error::range(format!("the norm of {}", self.attack), known.join(", "), self.budget.norm()))
    }
}

/// Who says what the true class is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelFrom {
    /// The bundled test image's label.
    Sample,
    /// The request.
    Request,
    /// Nobody: what the bare classifier says of the clean image is taken for true.
    Classifier,
}

/// Whom an attack is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The classifier alone.
    Bare,
    /// Classifier and restoration, with exact second-order gradients.
    Defended,
}

/// What a visitor is told.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Event {
    /// What is going to happen.
    Begin(Box<Begin>),
    /// The attack moved on.
    Step(Box<Step>),
    /// The attack on one target is over.
    End(End),
    /// Something went wrong; nothing follows.
    Failed {
        /// What, for machines.
        code: &'static str,
        /// What, for people.
        message: String,
    },
    /// Nothing follows.
    Done {},
}

impl Event {
    /// Its name in the stream.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begin(_) => "begin",
            Self::Step(_) => "step",
            Self::End(_) => "end",
            Self::Failed { .. } => "failed",
            Self::Done {} => "done",
        }
    }
}

/// What is going to happen.
#[derive(Debug, Serialize)]
pub struct Begin {
    attack: String,
    budget: String,
    steps: Option<u32>,
    label: usize,
    label_name: String,
    label_from: LabelFrom,
    clean: Frame,
}

/// The attack moved on.
#[derive(Debug, Serialize)]
pub struct Step {
    target: Target,
    step: u32,
    of: Option<u32>,
    frame: Frame,
}

/// The attack on one target is over.
#[derive(Debug, Serialize)]
pub struct End {
    target: Target,
    steps: u32,
    /// Whether the target is wrong on the last image.
    fooled: bool,
    /// The first shown step at which it was.
    first_fooled: Option<u32>,
    /// Gradients that the attack took, without those for the pictures.
    gradients: u64,
    /// Times that the attack looked at the target's answer, likewise.
    forward: u64,
    seconds: f64,
}

/// An image and what is made of it.
#[derive(Debug, Serialize)]
pub struct Frame {
    image: String,
    gradient_map: Option<String>,
    restored: String,
    difference: String,
    bare: Vec<f32>,
    defended: Vec<f32>,
    bare_label: usize,
    defended_label: usize,
    largest_change: f32,
    suspicion: Option<SuspicionFacts>,
}

struct Session {
    wish: Wish,
    events: mpsc::Sender<Event>,
}

/// The way to the thread that attacks.
pub struct Playground {
    sessions: SyncSender<Session>,
}

/// Why nothing can be watched now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwatchable {
    /// Too many watch already.
    Busy,
    /// The server is stopping.
    Closed,
}

impl Playground {
    /// The way in, and what [`attack`] takes.
    pub fn new() -> (Self, Sessions) {
        let (sessions, receiver) = sync_channel(SESSIONS);
        (Self { sessions }, Sessions(receiver))
    }

    /// Has `wish` attacked when its turn comes. Dropping the result stops it.
    ///
    /// # Errors
    /// If too many wait already, or the server is stopping.
    pub fn watch(&self, wish: Wish) -> std::result::Result<mpsc::Receiver<Event>, Unwatchable> {
        let (events, receiver) = mpsc::channel(EVENTS);
        match self.sessions.try_send(Session { wish, events }) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => Err(Unwatchable::Busy),
            Err(TrySendError::Disconnected(_)) => Err(Unwatchable::Closed),
        }
    }
}

/// Sessions that wait for their turn.
pub struct Sessions(Receiver<Session>);

/// Attacks for one visitor after the other, until [`Playground`] is dropped or `stopping` is set.
pub fn attack(
    guard: &Guard,
    facts: &ModelFacts,
    yardstick: Option<&Yardstick>,
    sessions: &Sessions,
    stopping: &Arc<AtomicBool>,
) {
    while let Ok(session) = sessions.0.recv() {
        let stage = Stage { guard, facts, yardstick, session: &session, stopping };
        // libtorch's errors may be panics; the thread has to outlive them
        let result = catch_unwind(AssertUnwindSafe(|| stage.perform()));
        let last = match result {
            Ok(Ok(())) => Event::Done {},
            Ok(Err(Error::Interrupted)) if !stopping.load(Ordering::Relaxed) => continue,
            Ok(Err(Error::Interrupted)) => {
                Event::Failed { code: "unavailable", message: "the server is stopping".into() }
            }
            Ok(Err(error)) => Event::Failed { code: "unprocessable", message: error.to_string() },
            Err(_) => {
                tracing::error!(attack = %session.wish.attack, "an attack made libtorch panic");
                Event::Failed { code: "internal", message: "the attack failed on this image".into() }
            }
        };
        // whoever has gone need not be told
        let _ = session.events.try_send(last);
    }
}

struct Stage<'a> {
    guard: &'a Guard,
    facts: &'a ModelFacts,
    yardstick: Option<&'a Yardstick>,
    session: &'a Session,
    stopping: &'a Arc<AtomicBool>,
}

impl Stage<'_> {
    fn perform(&self) -> Result<()> {
        let wish = &self.session.wish;
        let clean = self.guard.tensor(&wish.image, 1);
        let frame = self.frame(&clean)?;
        let (label, label_from) = wish.label.unwrap_or((frame.bare_label, LabelFrom::Classifier));
        self.tell(Event::Begin(Box::new(Begin {
            attack: wish.attack.to_string(),
            budget: wish.budget.to_string(),
            steps: wish.attack.steps(),
            label,
            label_name: self.facts.class_name(label),
            label_from,
            clean: frame,
        })))?;
        let networks = self.guard.networks();
        let defended = Defended::new(&networks.classifier, &networks.trn, GradientMode::Exact)?;
        self.attack(Target::Bare, &networks.classifier, &clean, label)?;
        self.attack(Target::Defended, &defended, &clean, label)
    }

    fn attack(
        &self,
        target: Target,
        classifier: &dyn Classifier,
        clean: &Tensor,
        label: usize,
    ) -> Result<()> {
        let wish = &self.session.wish;
        let begun = Instant::now();
        let batch = Batch {
            images: clean,
            labels: &Tensor::from_slice(&[label as i64]).to_device(clean.device()),
            ids: &[wish.id],
            budget: wish.budget,
            objective: Objective::CrossEntropy,
            seed: wish.seed,
            restart: 0,
        };
        batch.check(classifier.classes())?;
        let logits = wish.attack.wants_logits().then(|| tch::no_grad(|| classifier.logits(clean)));
        let conditions = Conditions { logits: logits.as_ref(), until_fooled: false };
        let mut attempt = wish.attack.begin(&batch, &conditions)?;
        let stride = wish.attack.steps().map_or(1, |steps| steps.div_ceil(MOST_FRAMES)).max(1);
        let (mut step, mut shown, mut spent) = (0, 0, Passes::default());
        let (mut fooled, mut first_fooled) = (false, None);
        loop {
            self.may_go_on()?;
            attempt.step(classifier)?;
            step += 1;
            spent += attempt.passes();
            let finished = bool::try_from(attempt.finished().all())?;
            // an attack that takes more steps than its name says is shown up to its last one all the same
            if finished || (step % stride == 0 && shown + 1 < MOST_FRAMES) {
                let frame = self.frame(&attempt.adversarial().detach())?;
                fooled =
                    label != if target == Target::Bare { frame.bare_label } else { frame.defended_label };
                first_fooled = first_fooled.or(fooled.then_some(step));
                shown += 1;
                self.tell(Event::Step(Box::new(Step { target, step, of: wish.attack.steps(), frame })))?;
            }
            if finished {
                break;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let (gradients, forward) = (spent.backward, spent.forward);
        self.tell(Event::End(End { target, steps: step, fooled, first_fooled, gradients, forward, seconds }))
    }

    fn may_go_on(&self) -> Result<()> {
        let gone = self.session.events.is_closed();
        if gone || self.stopping.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn tell(&self, event: Event) -> Result<()> {
        // the channel has room for every event there can be, so only a visitor who has gone makes this fail
        self.session.events.try_send(event).map_err(|_| Error::Interrupted)
    }

    fn frame(&self, image: &Tensor) -> Result<Frame> {
        let wants = Wants { restored: true, map: true };
        let verdict = tch::no_grad(|| self.guard.judge_tensor(image, wants))?.into_iter().next();
        let verdict = verdict.ok_or_else(|| Error::Refused("the networks gave no answer".into()))?;
        let values = Vec::<f32>::try_from(image.to_device(Device::Cpu).contiguous().flatten(0, -1))?;
        self.drawn(&values, &verdict)
    }

    fn drawn(&self, values: &[f32], verdict: &Verdict) -> Result<Frame> {
        let shape = self.guard.shape();
        let wish = &self.session.wish;
        let change = || values.iter().zip(&wish.image).map(|(value, clean)| value - clean);
        let largest_change = change().fold(0.0, |largest: f32, change| largest.max(change.abs()));
        // drawn against the budget where it bounds single values, else against the change itself
        let scale = match wish.budget.norm() {
            talion_core::Norm::Linf => wish.budget.epsilon() as f32,
            _ => largest_change,
        };
        let difference: Vec<f32> = change().map(|change| change / scale.max(1e-6)).collect();
        let map = verdict.map.as_ref().map(|map| data_url(&signed(map), shape)).transpose()?;
        Ok(Frame {
            image: data_url(values, shape)?,
            gradient_map: map,
            restored: data_url(verdict.restored.as_deref().unwrap_or(values), shape)?,
            difference: data_url(&signed(&difference), shape)?,
            bare_label: likeliest(&verdict.bare),
            defended_label: likeliest(&verdict.defended),
            bare: verdict.bare.clone(),
            defended: verdict.defended.clone(),
            largest_change,
            suspicion: SuspicionFacts::new(self.yardstick, verdict.score),
        })
    }
}

/// The class of the highest probability.
pub fn likeliest(probabilities: &[f32]) -> usize {
    let better =
        |best: usize, label: usize| if probabilities[label] > probabilities[best] { label } else { best };
    (0..probabilities.len()).fold(0, better)
}
