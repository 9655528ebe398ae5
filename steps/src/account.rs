//! What a batch takes of memory while it is computed: measured, not guessed.
//!
//! Whoever makes rows takes their bytes off an [`Account`] and gives them back when they go. One that takes more than
//! there is gets [`Outgrown`]: the computation ends, and its caller tries a smaller batch. Nothing here decides about rows,
//! so that the same rows give the same output under every limit, or none.
//!
//! - Between steps what lives is measured exactly: each buffer once, however many columns share it.
//! - Inside of a step each slice is measured by the bytes of its values. Where one value may become very many bytes
//!   (`repeat`, `split`, a lookup's text), they are taken before they are made.
//! - DataFusion takes its hash tables and sorted runs off the same account, as its memory pool.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::{
    array::{Array, ArrayData, ArrayRef, AsArray, RecordBatch},
    datatypes::DataType,
    error::ArrowError,
};
use datafusion::{
    common::DataFusionError,
    execution::memory_pool::{MemoryLimit, MemoryPool, MemoryReservation},
};

/// What an array costs beside its buffers.
const ARRAY_BYTES: u64 = 192;
/// What a row costs beside its columns: the number of its record.
pub const ROW_BYTES: u64 = 4;
/// What a reject costs beside its sentence.
pub const REJECT_BYTES: u64 = 160;

/// A batch would take more memory than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgrown {
    /// Bytes that it would take, as far as it came.
    pub needed: u64,
    /// Bytes that it may.
    pub limit: u64,
}

impl fmt::Display for Outgrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it takes {} bytes of memory, and the batch may take {}", self.needed, self.limit)
    }
}

impl From<Outgrown> for ArrowError {
    fn from(outgrown: Outgrown) -> Self {
        Self::MemoryError(outgrown.to_string())
    }
}

impl From<Outgrown> for DataFusionError {
    fn from(outgrown: Outgrown) -> Self {
        Self::ResourcesExhausted(outgrown.to_string())
    }
}

/// Asked for so many bytes more; gives so many, or none.
type Grow = Box<dyn Fn(u64) -> u64 + Send + Sync>;

/// The memory of one batch.
pub struct Account {
    used: AtomicU64,
    limit: AtomicU64,
    grow: Mutex<Option<Grow>>,
    outgrown: OnceLock<Outgrown>,
    blamed: OnceLock<String>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Account({} of {})", self.used(), self.limit.load(Ordering::Relaxed))
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Account {
    /// An account of so many bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Self::with(limit, None)
    }

    /// One that asks for more before it gives up: `grow` gets the bytes that are lacking and says how many it adds.
    pub fn growing(limit: u64, grow: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Arc<Self> {
        Self::with(limit, Some(Box::new(grow)))
    }

    fn with(limit: u64, grow: Option<Grow>) -> Arc<Self> {
        Arc::new(Self {
            used: 0.into(),
            limit: limit.into(),
            grow: Mutex::new(grow),
            outgrown: OnceLock::new(),
            blamed: OnceLock::new(),
        })
    }

    /// One without a limit.
    pub fn unlimited() -> Arc<Self> {
        Self::new(u64::MAX)
    }

    /// Takes bytes that are about to be made, or were made just now.
    pub fn take(&self, bytes: u64) -> Result<(), Outgrown> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if used <= self.limit.load(Ordering::Relaxed) || self.has_grown_to(used) {
            return Ok(());
        }
        self.give_back(bytes);
        let outgrown = Outgrown { needed: used, limit: self.limit.load(Ordering::Relaxed) };
        Err(*self.outgrown.get_or_init(|| outgrown))
    }

    fn has_grown_to(&self, used: u64) -> bool {
        // One at a time: what one gets another need not ask for.
        let grow = self.grow.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = self.limit.load(Ordering::Relaxed);
        if used > limit
            && let Some(grow) = &*grow
        {
            self.limit.fetch_add(grow(used - limit), Ordering::Relaxed);
        }
        used <= self.limit.load(Ordering::Relaxed)
    }

    /// Gives back what is not there any more.
    pub fn give_back(&self, bytes: u64) {
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(bytes)));
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Notes the step in which the batch outgrew its memory: the first one that is named.
    pub fn blame(&self, step: &str) {
        self.blamed.get_or_init(|| step.to_owned());
    }

    /// That step.
    pub fn blamed(&self) -> Option<&str> {
        self.blamed.get().map(String::as_str)
    }

    /// Whether somebody asked for more than there is: what was computed since then is of no use.
    pub fn outgrown(&self) -> Option<Outgrown> {
        self.outgrown.get().copied()
    }
}

/// What DataFusion's operators hold.
impl MemoryPool for Account {
    fn name(&self) -> &str {
        "batch"
    }
    fn grow(&self, _: &MemoryReservation, additional: usize) {
        // It is there already. Where that is too much, the next one who asks hears it.
        self.used.fetch_add(additional as u64, Ordering::Relaxed);
    }
    fn shrink(&self, _: &MemoryReservation, shrink: usize) {
        self.give_back(shrink as u64);
    }
    fn try_grow(&self, _: &MemoryReservation, additional: usize) -> datafusion::common::Result<()> {
        Ok(self.take(additional as u64)?)
    }
    fn reserved(&self) -> usize {
        usize::try_from(self.used()).unwrap_or(usize::MAX)
    }
    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(usize::try_from(self.limit.load(Ordering::Relaxed)).unwrap_or(usize::MAX))
    }
}

thread_local! {
    /// The account of the batch that this thread computes.
    static CURRENT: RefCell<Option<Arc<Account>>> = const { RefCell::new(None) };
    /// What functions took of it since the last time that the thread's rows were measured.
    static PENDING: Cell<u64> = const { Cell::new(0) };
}

/// For as long as it lives, functions of this thread take what they make off an account.
pub struct Entered {
    before: Option<Arc<Account>>,
    pending: u64,
}

/// Begins to compute for a batch on this thread.
pub fn enter(account: &Arc<Account>) -> Entered {
    Entered { before: CURRENT.replace(Some(Arc::clone(account))), pending: PENDING.take() }
}

impl Drop for Entered {
    fn drop(&mut self) {
        settle();
        CURRENT.set(self.before.take());
        PENDING.set(self.pending);
    }
}

/// Takes bytes that a function is about to make; they are given back by [`settle`], when whoever called it has measured
/// what became of them.
pub fn expect(bytes: u64) -> Result<(), Outgrown> {
    CURRENT.with_borrow(|current| match current {
        Some(account) => {
            account.take(bytes)?;
            PENDING.set(PENDING.get() + bytes);
            Ok(())
        }
        // Constants, while a job is planned.
        None if bytes > MAX_CONSTANT_BYTES => Err(Outgrown { needed: bytes, limit: MAX_CONSTANT_BYTES }),
        None => Ok(()),
    })
}

/// A constant that is larger is not computed while a job is planned.
const MAX_CONSTANT_BYTES: u64 = 16 << 20;

/// What functions took is measured otherwise from now on.
pub fn settle() {
    let pending = PENDING.take();
    CURRENT.with_borrow(|current| {
        if let Some(account) = current {
            account.give_back(pending);
        }
    });
}

/// Whether the batch of this thread has outgrown its memory.
pub fn is_outgrown() -> bool {
    CURRENT.with_borrow(|current| current.as_ref().is_some_and(|account| account.outgrown().is_some()))
}

/// Bytes of a value of this type that is null or empty, and of what belongs to each value.
pub fn width(kind: &DataType) -> u64 {
    match kind {
        DataType::Null => 0,
        DataType::Boolean => 1,
        DataType::Utf8 | DataType::Binary | DataType::List(_) | DataType::Map(..) => 5,
        DataType::LargeUtf8 | DataType::LargeBinary | DataType::LargeList(_) => 9,
        DataType::Utf8View | DataType::BinaryView => 17,
        DataType::Struct(fields) => 1 + fields.iter().map(|field| width(field.data_type())).sum::<u64>(),
        DataType::FixedSizeBinary(size) => 1 + u64::try_from(*size).unwrap_or_default(),
        DataType::FixedSizeList(field, size) => 1 + u64::try_from(*size).unwrap_or_default() * width(field.data_type()),
        other => 1 + other.primitive_width().unwrap_or(8) as u64,
    }
}

/// Bytes of the values of an array, without what it shares with others and does not show: quick, for slices.
pub fn bytes_of_values(array: &ArrayRef) -> u64 {
    ARRAY_BYTES + values(array.as_ref(), 0, array.len())
}

/// Bytes of the values of some rows of an array.
pub fn values(array: &dyn Array, start: usize, rows: usize) -> u64 {
    if rows == 0 {
        return 0;
    }
    let fixed = rows as u64 * width(array.data_type());
    let span = |offsets: &[i32]| (offsets[start] as usize, offsets[start + rows] as usize);
    match array.data_type() {
        DataType::Utf8 => {
            let (from, to) = span(array.as_string::<i32>().value_offsets());
            fixed + (to - from) as u64
        }
        DataType::Binary => {
            let (from, to) = span(array.as_binary::<i32>().value_offsets());
            fixed + (to - from) as u64
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let (from, to) = span(list.value_offsets());
            fixed + values(list.values().as_ref(), from, to - from)
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let (from, to) = span(map.value_offsets());
            fixed + values(map.entries(), from, to - from)
        }
        DataType::Struct(_) => {
            let columns = array.as_struct().columns();
            rows as u64 + columns.iter().map(|column| values(column.as_ref(), start, rows)).sum::<u64>()
        }
        // Types that are not between steps: in full, which is too much rather than too little.
        DataType::LargeUtf8
        | DataType::LargeBinary
        | DataType::LargeList(_)
        | DataType::Utf8View
        | DataType::BinaryView
        | DataType::FixedSizeList(..)
        | DataType::Dictionary(..) => array.get_array_memory_size() as u64,
        _ => fixed,
    }
}

/// Bytes of the values of a batch.
pub fn bytes_of_rows(batch: &RecordBatch) -> u64 {
    batch.num_rows() as u64 * ROW_BYTES + batch.columns().iter().map(bytes_of_values).sum::<u64>()
}

/// The bytes of a batch's largest row, or a little more.
pub fn largest_row(batch: &RecordBatch) -> u64 {
    batch.columns().iter().map(|column| largest(column.as_ref())).sum()
}

fn largest(array: &dyn Array) -> u64 {
    let fixed = width(array.data_type());
    match array.data_type() {
        DataType::Utf8 | DataType::Binary | DataType::List(_) | DataType::Map(..) => {
            (0..array.len()).map(|row| values(array, row, 1)).max().unwrap_or(fixed)
        }
        DataType::Struct(_) => fixed + array.as_struct().columns().iter().map(|c| largest(c.as_ref())).sum::<u64>(),
        _ => fixed,
    }
}

/// Measures what arrays hold together: each buffer once.
#[derive(Default)]
pub struct Tally {
    seen: HashSet<usize>,
    bytes: u64,
}

impl Tally {
    /// Adds the columns of a batch and the numbers of its records.
    pub fn add(&mut self, batch: &RecordBatch) {
        self.bytes += batch.num_rows() as u64 * ROW_BYTES;
        for column in batch.columns() {
            self.add_data(&column.to_data());
        }
    }

    fn add_data(&mut self, data: &ArrayData) {
        self.bytes += ARRAY_BYTES;
        for buffer in data.buffers().iter().chain(data.nulls().map(|nulls| nulls.buffer())) {
            if self.seen.insert(buffer.data_ptr().as_ptr() as usize) {
                self.bytes += buffer.capacity() as u64;
            }
        }
        data.child_data().iter().for_each(|child| self.add_data(child));
    }

    /// Bytes of all that was added.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
