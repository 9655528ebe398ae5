//! The two ends of a query: its inputs, found in the context of each run, so that a plan is made once; and its
//! partitions, read one after the other, so that rows have one order.

use std::{fmt, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array},
    compute::take_record_batch,
    datatypes::{DataType, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{Result, internal_err, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, TableType},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
        PlanProperties, ReplaceChildrenOptions,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, TryStreamExt};

use crate::account;

/// The rows of each input in one run, in slices whose borders do not depend on how the rows came.
#[derive(Debug)]
pub struct Inputs(pub Vec<Vec<RecordBatch>>);

/// An input by its number.
#[derive(Debug)]
pub struct Table {
    index: usize,
    schema: SchemaRef,
}

impl Table {
    pub fn new(index: usize, schema: SchemaRef) -> Self {
        Self { index, schema }
    }
}

#[async_trait]
impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
    fn table_type(&self) -> TableType {
        TableType::Base
    }
    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => Arc::clone(&self.schema),
        };
        let properties = properties(schema);
        Ok(Arc::new(Leaf { index: self.index, projection: projection.cloned(), properties }))
    }
}

/// One partition of bounded rows.
fn properties(schema: SchemaRef) -> Arc<PlanProperties> {
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(1),
        EmissionType::Incremental,
        Boundedness::Bounded,
    ))
}

/// Reads an input.
#[derive(Debug)]
struct Leaf {
    index: usize,
    projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for Leaf {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input {}", self.index)
    }
}

impl ExecutionPlan for Leaf {
    fn name(&self) -> &str {
        "Input"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }
    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }
    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let inputs = context.session_config().get_extension::<Inputs>();
        let Some(batches) = inputs.as_ref().and_then(|inputs| inputs.0.get(self.index)) else {
            return internal_err!("a query runs without its input {}", self.index);
        };
        let schema = Arc::clone(self.properties.eq_properties.schema());
        let (projection, is_cut) = (self.projection.clone(), batches.len() > 1);
        let rows = batches.clone().into_iter().map(move |batch: RecordBatch| -> Result<RecordBatch> {
            let batch = match &projection {
                Some(columns) => batch.project(columns)?,
                None => batch,
            };
            Ok(if is_cut { copied(&batch)? } else { batch })
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(rows))))
    }
}

/// The rows in buffers of their own. Operators that keep rows count the buffers that these are in: those of a slice are its
/// whole input's, and would be counted as often as it has slices.
fn copied(batch: &RecordBatch) -> Result<RecordBatch> {
    let rows = u32::try_from(batch.num_rows()).unwrap_or(u32::MAX);
    if batch.num_columns() == 0 {
        return Ok(batch.clone());
    }
    Ok(take_record_batch(batch, &UInt32Array::from_iter_values(0..rows))?)
}

/// Looks at the rows that are about to be unnested: each becomes as many as its longest list has items, and each of these has
/// all the row's other columns. DataFusion makes them of a row at once.
#[derive(Debug)]
pub struct Spread {
    child: Arc<dyn ExecutionPlan>,
    lists: Vec<usize>,
    properties: Arc<PlanProperties>,
}

impl Spread {
    pub fn new(child: Arc<dyn ExecutionPlan>, lists: Vec<usize>) -> Self {
        let properties = properties(child.schema());
        Self { child, lists, properties }
    }
}

/// The bytes that the largest of these rows has, spread over the items of its lists.
fn spread(batch: &RecordBatch, lists: &[usize]) -> u64 {
    let lists: Vec<&ArrayRef> = lists.iter().map(|index| batch.column(*index)).collect();
    let of_row = |row: usize| {
        let bytes = batch.columns().iter().map(|column| account::values(column.as_ref(), row, 1)).sum::<u64>();
        let longest = lists.iter().map(|list| items(list.as_ref(), row)).max().unwrap_or(0);
        bytes.saturating_mul(longest)
    };
    (0..batch.num_rows()).map(of_row).max().unwrap_or(0)
}

/// The items of one row's list, those of lists in it too.
fn items(list: &dyn Array, row: usize) -> u64 {
    match list.data_type() {
        DataType::List(_) => {
            let items = list.as_list::<i32>().value(row);
            match items.data_type() {
                DataType::List(_) => {
                    (0..items.len()).map(|row| self::items(items.as_ref(), row)).sum::<u64>().max(items.len() as u64)
                }
                _ => items.len() as u64,
            }
        }
        DataType::LargeList(_) => list.as_list::<i64>().value(row).len() as u64,
        DataType::FixedSizeList(..) => list.as_fixed_size_list().value_length() as u64,
        _ => 1,
    }
}

impl DisplayAs for Spread {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spread")
    }
}

impl ExecutionPlan for Spread {
    fn name(&self) -> &str {
        "Spread"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.child]
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(child), true) => Ok(Arc::new(Self::new(child, self.lists.clone()))),
            _ => internal_err!("Spread has one child"),
        }
    }
    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let lists = self.lists.clone();
        let rows = self.child.execute(partition, context)?.map(move |batch| -> Result<RecordBatch> {
            let batch = batch?;
            account::expect(spread(&batch, &lists))?;
            Ok(batch)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// All partitions of its child, one after the other.
#[derive(Debug)]
pub struct InOrder {
    child: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl InOrder {
    pub fn new(child: Arc<dyn ExecutionPlan>) -> Self {
        let properties = properties(child.schema());
        Self { child, properties }
    }
}

impl DisplayAs for InOrder {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InOrder")
    }
}

impl ExecutionPlan for InOrder {
    fn name(&self) -> &str {
        "InOrder"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.child]
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(child), true) => Ok(Arc::new(Self::new(child))),
            _ => internal_err!("InOrder has one child"),
        }
    }
    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }
    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (child, schema) = (Arc::clone(&self.child), self.schema());
        let partitions = futures::stream::iter(0..child.output_partitioning().partition_count());
        let rows = partitions.map(move |partition| child.execute(partition, Arc::clone(&context))).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}
