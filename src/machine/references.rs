//! Back ends and objects of the command line, and who names them: all of it is checked before the first is made.

use std::sync::Arc;

use super::places::Place;
use crate::backends::table::twice;
use crate::error::Result;
use crate::object::{Args, Kind, Prop, Props, Refers, Registry, TypeInfo, did_you_mean};

/// A back end or an object that is to be made, with everything about it checked that needs no host.
pub struct Planned<O: 'static, C: 'static> {
    /// Its type.
    pub of_type: &'static TypeInfo<O, C>,
    /// Its properties; the type's name and its own are taken.
    pub args: Args,
    /// All of what the user wrote.
    pub line: Args,
    /// Its name.
    pub name: Arc<str>,
}

/// The properties by which a kind of back end is named.
pub trait Named: Props {
    /// The kind that has these properties.
    const KIND: Kind;

    /// The name.
    fn name(&self) -> Arc<str>;
}

/// Checks what the user wrote for one option, as far as it alone can say.
///
/// # Errors
/// [`crate::error::Code::UnknownType`], [`crate::error::Code::BadProperty`], [`crate::error::Code::DuplicateId`].
pub fn plan<N: Named, O, C>(registry: &'static Registry<O, C>, lines: &[Args]) -> Result<Vec<Planned<O, C>>> {
    let mut known: Vec<Planned<O, C>> = Vec::new();
    for args in lines {
        let planned = plan_one::<N, O, C>(registry, args.clone())?;
        if known.iter().any(|other| other.name == planned.name) {
            return Err(twice(N::KIND, &planned.name).evidence(args.written()));
        }
        known.push(planned);
    }
    Ok(known)
}

/// [`plan`] of one line.
pub fn plan_one<N: Named, O, C>(registry: &'static Registry<O, C>, mut args: Args) -> Result<Planned<O, C>> {
    let line = args.clone();
    let of_type = registry.take_type(&mut args)?;
    let name = N::parse(&mut args)?.name();
    of_type.check(&args)?;
    Ok(Planned { of_type, args, line, name })
}

/// Something that a property can name.
pub struct Target {
    /// What it is.
    pub kind: Kind,
    /// The name of its type.
    pub of_type: &'static str,
    /// Its name.
    pub name: Arc<str>,
    /// Whether it may have several users.
    pub shared: bool,
    /// Who has it.
    pub user: Option<Arc<str>>,
}

/// Everything that properties can name.
#[derive(Default)]
pub struct Targets(Vec<Target>);

impl Targets {
    /// Adds what is to be made; `shared` says of which several may be users.
    pub fn add<O, C>(&mut self, kind: Kind, planned: &[Planned<O, C>], shared: impl Fn(&Planned<O, C>) -> bool) {
        self.0.extend(planned.iter().map(|planned| Target {
            kind,
            of_type: planned.of_type.name(),
            name: planned.name.clone(),
            shared: shared(planned),
            user: None,
        }));
    }

    /// Whether the devices name what there is.
    ///
    /// # Errors
    /// Those of [`Targets::name`].
    pub fn check_devices(&mut self, places: &[Place]) -> Result<()> {
        places.iter().try_for_each(|place| self.name(&place.id, place.of_type.props(), &place.args))
    }

    /// Whether these back ends name what there is.
    ///
    /// # Errors
    /// Those of [`Targets::name`].
    pub fn check<O, C>(&mut self, planned: &[Planned<O, C>]) -> Result<()> {
        planned.iter().try_for_each(|planned| self.name(&planned.name, planned.of_type.props(), &planned.args))
    }

    /// `user`, with these properties, takes what it names.
    ///
    /// # Errors
    /// [`crate::error::Code::UnknownObject`] or `UnknownBackend` for a name that there is not, `WrongBackend` for one of
    /// another kind or type, `BackendInUse` for one that has its user.
    pub fn name(&mut self, user: &Arc<str>, props: &[Prop], args: &Args) -> Result<()> {
        for prop in props {
            let (Some(refers), Some(name)) = (prop.refers, args.peek(prop.name)) else { continue };
            self.take(user, refers, name).map_err(|error| error.evidence(args.written()))?;
        }
        Ok(())
    }

    /// `user` takes what is called `name`.
    ///
    /// # Errors
    /// Those of [`Targets::name`].
    pub fn take(&mut self, user: &Arc<str>, refers: Refers, name: &str) -> Result<()> {
        let fits = |target: &Target| {
            target.kind == refers.kind && (refers.types.is_empty() || refers.types.contains(&target.of_type))
        };
        let named = |target: &&mut Target| &*target.name == name;
        Err(match self.0.iter_mut().filter(|target| fits(target)).find(named) {
            Some(Target { user: Some(first), shared: false, .. }) if !refers.shared => refers.taken(name, first),
            Some(target) => {
                target.user.get_or_insert_with(|| user.clone());
                return Ok(());
            }
            None => match self.0.iter().find(|target| &*target.name == name) {
                Some(other) => refers.wrong(name, other.kind, other.of_type),
                None => {
                    let fitting = self.0.iter().filter(|target| fits(target)).map(|target| &*target.name);
                    refers.absent(name, &did_you_mean(name, fitting))
                }
            },
        })
    }
}
