//! How a command says what was wrong: type and code of its status (NVMe 4.6.1).

/// Status of a command: the code in bits 0 to 7, its type in bits 8 to 10, "do not retry" in bit 14.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

/// Trying again would not help.
const DNR: u16 = 1 << 14;

impl Status {
    pub const INVALID_OPCODE: Status = Status(0x001 | DNR);
    pub const INVALID_FIELD: Status = Status(0x002 | DNR);
    pub const TRANSFER_ERROR: Status = Status(0x004);
    pub const INVALID_NAMESPACE: Status = Status(0x00b | DNR);
    pub const PRP_OFFSET: Status = Status(0x013 | DNR);
    pub const OUT_OF_RANGE: Status = Status(0x080 | DNR);
    pub const CQ_INVALID: Status = Status(0x100 | DNR);
    pub const QID_INVALID: Status = Status(0x101 | DNR);
    pub const QUEUE_SIZE: Status = Status(0x102 | DNR);
    pub const TOO_MANY_EVENTS: Status = Status(0x105 | DNR);
    pub const VECTOR_INVALID: Status = Status(0x108 | DNR);
    pub const LOG_PAGE_INVALID: Status = Status(0x109 | DNR);
    pub const QUEUE_DELETION: Status = Status(0x10c | DNR);
    pub const NOT_SAVEABLE: Status = Status(0x10d | DNR);
    pub const NOT_CHANGEABLE: Status = Status(0x10e | DNR);
    pub const READ_ONLY: Status = Status(0x182 | DNR);
    pub const WRITE_FAULT: Status = Status(0x280 | DNR);
    pub const UNRECOVERED_READ: Status = Status(0x281 | DNR);
}

/// What a command comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; the first dword of its completion.
    Done(u32),
    /// Something was wrong.
    Failed(Status),
    /// It cannot be done now, and stays at the head of its queue.
    Later,
    /// It is completed when something happens.
    Kept,
}

impl From<Status> for Outcome {
    fn from(status: Status) -> Outcome {
        Outcome::Failed(status)
    }
}
