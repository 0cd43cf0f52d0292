use proptest::prelude::*;

use super::*;
use crate::host::testtree::{TestTree, bdf};

const CARD: &str = "0000:01:00.0";
const SOUND: &str = "0000:01:00.1";

fn affected(address: &str, owned: bool) -> Affected {
    let driver = if owned { "vfio-pci" } else { "snd_hda_intel" };
    Affected { bdf: bdf(address), owned, driver: Some(driver.to_owned()) }
}

fn facts(methods: &[Method], scope: Option<Scope>, affected: Vec<Affected>) -> ResetFacts {
    ResetFacts { methods: Some(methods.to_vec()), distrusted: Vec::new(), scope, affected }
}

#[test]
fn each_kind_of_card() {
    use Method::*;
    use Scope::Slot;
    let alone = || vec![affected(CARD, true)];
    let pair = |owned| vec![affected(CARD, true), affected(SOUND, owned)];
    let function = |method| Verdict::Function { method: Some(method) };
    let table = [
        ("a drive", facts(&[Flr, Pm, Bus], Some(Scope::Bus), alone()), function(Flr)),
        ("without FLR", facts(&[Pm, Bus], Some(Slot), alone()), Verdict::Hot { scope: Slot, with: vec![] }),
        ("without FLR, shared", facts(&[Pm, Bus], Some(Scope::Bus), pair(false)), function(Pm)),
        ("the power state by its owner's will", facts(&[Pm], Some(Slot), alone()), function(Pm)),
        ("without FLR, on the root bus", facts(&[Pm], None, vec![]), function(Pm)),
        ("the bus for itself", facts(&[Bus], Some(Slot), alone()), function(Bus)),
        (
            "a kernel that does not say",
            ResetFacts { methods: None, ..facts(&[], None, vec![]) },
            Verdict::Function { method: None },
        ),
        ("its own code first", facts(&[DeviceSpecific, Flr], None, vec![]), function(DeviceSpecific)),
        (
            "a graphics card with sound, both ours",
            facts(&[Bus], Some(Scope::Bus), pair(true)),
            Verdict::Hot { scope: Scope::Bus, with: vec![bdf(SOUND)] },
        ),
        (
            "the sound on its driver",
            facts(&[Bus], Some(Scope::Bus), pair(false)),
            Verdict::None { blockers: vec![affected(SOUND, false)] },
        ),
        ("FLR needs nobody", facts(&[Flr, Bus], Some(Scope::Bus), pair(false)), function(Flr)),
        (
            "alone, the kernel has no method",
            facts(&[], Some(Slot), alone()),
            Verdict::Hot { scope: Slot, with: vec![] },
        ),
        ("on the root bus", facts(&[], None, vec![]), Verdict::None { blockers: vec![] }),
        ("bus without a bridge", facts(&[Bus], None, vec![]), Verdict::None { blockers: vec![] }),
    ];
    for (what, facts, wanted) in table {
        assert_eq!(plan(bdf(CARD), &facts), wanted, "{what}");
    }
}

#[test]
fn a_method_that_does_not_work_gives_way_to_a_hot_reset_and_to_nothing_else() {
    let distrust = |mut facts: ResetFacts| {
        facts.distrusted = vec![Method::Flr];
        plan(bdf(CARD), &facts)
    };
    let pair = |owned| vec![affected(CARD, true), affected(SOUND, owned)];
    let methods = &[Method::Flr, Method::Pm];
    let hot = distrust(facts(methods, Some(Scope::Bus), pair(true)));
    assert_eq!(hot, Verdict::Hot { scope: Scope::Bus, with: vec![bdf(SOUND)] });
    let rather = distrust(facts(methods, Some(Scope::Bus), pair(false)));
    assert_eq!(rather, Verdict::Function { method: Some(Method::Flr) });
}

fn card(sound: &str) -> TestTree {
    let tree = TestTree::new();
    tree.pci("0000:00:01.0").bridge().driver("pcieport").add();
    tree.pci(CARD).below("0000:00:01.0").class(0x030000).driver("vfio-pci").group(1).add();
    tree.pci(SOUND).below("0000:00:01.0").class(0x040300).driver(sound).group(1).add();
    tree.pci("0000:00:02.0").driver("e1000e").add();
    for address in [CARD, SOUND] {
        tree.attribute(address, "reset_method", "bus\n");
    }
    tree
}

fn planned(tree: &TestTree, address: &str) -> ResetPlan {
    let host = tree.host();
    host.reset_plan(&host.device(bdf(address)).unwrap())
}

#[test]
fn sysfs_tells_who_shares_the_bus() {
    let tree = card("snd_hda_intel");
    assert_eq!(
        tree.host().resets_alone(bdf(CARD)),
        Alone::Impossible,
        "the kernel's `bus` is for one that is alone on it"
    );
    let plan = planned(&tree, CARD);
    assert_eq!(plan.facts.affected.iter().map(|other| other.bdf).collect::<Vec<_>>(), [bdf(CARD), bdf(SOUND)]);
    assert_eq!(plan.verdict.to_string(), "none: a hot reset would also hit 0000:01:00.1 (driver snd_hda_intel)");
    let plan = planned(&card("vfio-pci"), CARD);
    assert_eq!(plan.verdict.to_string(), "hot reset of the bus, together with 0000:01:00.1");
    let plan = planned(&tree, "0000:00:02.0");
    assert_eq!((plan.facts.scope, plan.facts.methods), (None, Some(vec![])), "nothing is offered");
    assert_eq!(tree.host().resets_alone(bdf("00:02.0")), Alone::Impossible);
    tree.attribute("0000:00:02.0", "reset", "");
    assert_eq!(tree.host().resets_alone(bdf("00:02.0")), Alone::Thorough);
    assert_eq!(planned(&tree, "0000:00:02.0").facts.methods, None, "an old kernel does not say which");
}

#[test]
fn a_slot_that_can_be_plugged_is_reset_alone() {
    let tree = card("vfio-pci");
    tree.pci("0000:01:01.0").below("0000:00:01.0").driver("nvme").add();
    assert!(matches!(planned(&tree, CARD).verdict, Verdict::None { .. }));
    tree.file("sys/bus/pci/slots/3/address", "0000:01:00\n");
    let plan = planned(&tree, CARD);
    assert_eq!(plan.verdict, Verdict::Hot { scope: Scope::Slot, with: vec![bdf(SOUND)] });
}

#[test]
fn a_device_that_does_not_survive_a_bus_reset_gets_none() {
    let tree = card("vfio-pci");
    tree.pci("0000:01:00.2").ids(0x168c, 0x0030).below("0000:00:01.0").driver("vfio-pci").add();
    let plan = planned(&tree, "0000:01:00.2");
    assert_eq!((plan.facts.scope, plan.verdict), (None, Verdict::None { blockers: vec![] }));
}

#[test]
fn a_virtual_function_is_never_hot_reset() {
    let tree = card("vfio-pci");
    tree.pci("0000:01:10.0").below("0000:00:01.0").driver("vfio-pci").add();
    std::os::unix::fs::symlink(tree.pci_path(CARD), tree.pci_path("0000:01:10.0").join("physfn")).unwrap();
    tree.attribute("0000:01:10.0", "reset_method", "\n");
    assert_eq!(planned(&tree, "0000:01:10.0").verdict, Verdict::None { blockers: vec![] });
    assert!(planned(&tree, CARD).facts.affected.len() == 3, "the card's own hot reset hits it");
}

#[test]
fn what_a_reset_alone_is_worth() {
    let tree = card("vfio-pci");
    let worth = |methods: &str| {
        tree.attribute(CARD, "reset_method", methods);
        tree.host().resets_alone(bdf(CARD))
    };
    assert_eq!(worth("flr pm bus\n"), Alone::Thorough);
    assert_eq!(worth("pm bus\n"), Alone::Doubtful);
    assert_eq!(worth("pm\n"), Alone::Doubtful, "it shares the bus, and would not be given that one");
    assert_eq!(worth("bus\n"), Alone::Impossible);
    assert_eq!(worth("\n"), Alone::Impossible);
    tree.pci("0000:02:00.0").driver("vfio-pci").add();
    let worth = |methods: &str| {
        tree.attribute("0000:02:00.0", "reset_method", methods);
        tree.host().resets_alone(bdf("02:00.0"))
    };
    assert_eq!(worth("pm bus\n"), Alone::Doubtful);
    assert_eq!(worth("pm\n"), Alone::Thorough, "its owner's will");
    assert_eq!(worth("bus\n"), Alone::Thorough);
}

fn any_facts() -> impl Strategy<Value = ResetFacts> {
    let method = prop::sample::select(vec![
        Method::DeviceSpecific,
        Method::Acpi,
        Method::Flr,
        Method::AfFlr,
        Method::Pm,
        Method::Bus,
        Method::CxlBus,
    ]);
    let others = prop::collection::vec((1u8..8, any::<bool>()), 0..6);
    let scope = prop::option::of(prop::sample::select(vec![Scope::Slot, Scope::Bus]));
    let methods = prop::option::of(prop::collection::vec(method.clone(), 0..7));
    (methods, prop::collection::vec(method, 0..3), scope, others).prop_map(|(methods, distrusted, scope, others)| {
        let me = bdf(CARD);
        let others =
            others.into_iter().map(|(function, owned)| Affected { bdf: Bdf { function, ..me }, owned, driver: None });
        let own = Affected { bdf: me, owned: true, driver: None };
        let affected = if scope.is_some() { std::iter::once(own).chain(others).collect() } else { Vec::new() };
        ResetFacts { methods, distrusted, scope, affected }
    })
}

proptest! {
    /// Nobody else's function is ever reset, and a function-level reset is one that the kernel has.
    #[test]
    fn nobody_else_is_hit(facts in any_facts()) {
        let me = bdf(CARD);
        match plan(me, &facts) {
            Verdict::Hot { scope, with } => {
                prop_assert_eq!(Some(scope), facts.scope);
                prop_assert!(facts.affected.iter().all(|other| other.bdf == me || other.owned));
                prop_assert!(!with.contains(&me));
            }
            Verdict::Function { method: Some(method) } => {
                prop_assert!(facts.methods.clone().is_some_and(|methods| methods.contains(&method)));
                if matches!(method, Method::Bus | Method::CxlBus) {
                    prop_assert!(facts.affected.iter().all(|other| other.bdf == me));
                }
            }
            Verdict::Function { method: None } => prop_assert!(facts.methods.is_none()),
            Verdict::None { blockers } => {
                prop_assert!(blockers.iter().all(|other| !other.owned));
                prop_assert!(facts.scope.is_none() || !blockers.is_empty());
            }
        }
    }

    /// More ownership never takes a reset away.
    #[test]
    fn owning_more_never_hurts(facts in any_facts()) {
        let me = bdf(CARD);
        let mut all = facts.clone();
        all.affected.iter_mut().for_each(|other| other.owned = true);
        let none = |facts| matches!(plan(me, facts), Verdict::None { .. });
        prop_assert!(none(&facts) || !none(&all));
    }

    #[test]
    fn names_are_read_back(name in "[a-z_]{0,16}") {
        if let Some(method) = Method::parse(&name) {
            prop_assert_eq!(method.to_string(), name);
        }
    }
}
