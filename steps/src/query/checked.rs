//! Arithmetic on integers that fails on overflow, and a division of doubles that fails where it is by zero. DataFusion's
//! wraps around and gives an infinity, and has no option for it inside a plan: so sums, differences and products of the
//! optimised plan, and quotients of doubles, become functions of our own.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Datum},
    compute::kernels::numeric,
    datatypes::{DataType, Field, FieldRef, Float32Type, Float64Type},
    error::ArrowError,
};
use datafusion::{
    common::{
        DFSchema, Result, ScalarValue, internal_err,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    logical_expr::{
        BinaryExpr, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs,
        ScalarUDF, ScalarUDFImpl, Signature, Volatility, expr_rewriter::NamePreserver, utils::merge_schema,
    },
};

use crate::expression;

/// The plan with checked arithmetic. Names and types of columns stay as they are.
pub fn arithmetic(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| {
        let mut schema = merge_schema(&node.inputs());
        if let LogicalPlan::TableScan(scan) = &node {
            schema.merge(&scan.projected_schema);
        }
        let names = NamePreserver::new(&node);
        node.map_expressions(|part| {
            let name = names.save(&part);
            // What is only there to be simplified, where nothing was.
            let part = expression::resolved(part, &schema)?;
            let part = part.transform_data(|part| part.transform_up(|part| check(part, &schema)))?;
            Ok(part.update_data(|part| name.restore(part)))
        })
    })
    .data()
}

/// An expression whose quotients are checked; its sums are, where they are evaluated.
pub fn quotients(logical: Expr, schema: &DFSchema) -> Result<Expr> {
    let is_quotient = |part: &Expr| matches!(part, Expr::BinaryExpr(binary) if matches!(binary.op, Operator::Divide | Operator::Modulo));
    logical.transform_up(|part| if is_quotient(&part) { check(part, schema) } else { Ok(Transformed::no(part)) }).data()
}

/// Both sides have one type: types were brought together before.
fn check(part: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = &part else { return Ok(Transformed::no(part)) };
    let is_quotient = match op {
        Operator::Plus | Operator::Minus | Operator::Multiply => false,
        Operator::Divide | Operator::Modulo => true,
        _ => return Ok(Transformed::no(part)),
    };
    let (Ok(first), Ok(second)) = (left.get_type(schema), right.get_type(schema)) else {
        return Ok(Transformed::no(part));
    };
    // A quotient of integers or decimals fails by itself.
    let is_meant = if is_quotient { first.is_floating() } else { first.is_integer() };
    if !is_meant || first != second {
        return Ok(Transformed::no(part));
    }
    let function = ScalarUDF::from(Checked { operator: *op, signature: Signature::any(2, Volatility::Immutable) });
    Ok(Transformed::yes(function.call(vec![left.as_ref().clone(), right.as_ref().clone()])))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    operator: Operator,
    signature: Signature,
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        match self.operator {
            Operator::Plus => "checked_add",
            Operator::Minus => "checked_subtract",
            Operator::Divide => "checked_divide",
            Operator::Modulo => "checked_modulo",
            _ => "checked_multiply",
        }
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, kinds: &[DataType]) -> Result<DataType> {
        match kinds {
            [kind, _] => Ok(kind.clone()),
            _ => internal_err!("{} takes two arguments", self.name()),
        }
    }
    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let kinds: Vec<DataType> = arguments.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let nullable = arguments.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), self.return_type(&kinds)?, nullable)))
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [left, right] = arguments.args.as_slice() else {
            return internal_err!("{} takes two arguments", self.name());
        };
        let kernel = match self.operator {
            Operator::Plus => numeric::add,
            Operator::Minus => numeric::sub,
            Operator::Divide => divide,
            Operator::Modulo => remainder,
            _ => numeric::mul,
        };
        Ok(match (left, right) {
            (ColumnarValue::Array(left), ColumnarValue::Array(right)) => ColumnarValue::Array(kernel(left, right)?),
            (ColumnarValue::Array(left), ColumnarValue::Scalar(right)) => {
                ColumnarValue::Array(kernel(left, &right.to_scalar()?)?)
            }
            (ColumnarValue::Scalar(left), ColumnarValue::Array(right)) => {
                ColumnarValue::Array(kernel(&left.to_scalar()?, right)?)
            }
            (ColumnarValue::Scalar(left), ColumnarValue::Scalar(right)) => {
                let value = kernel(&left.to_scalar()?, &right.to_scalar()?)?;
                ColumnarValue::Scalar(ScalarValue::try_from_array(&value, 0)?)
            }
        })
    }
}

fn divide(left: &dyn Datum, right: &dyn Datum) -> std::result::Result<ArrayRef, ArrowError> {
    no_zero(left, right)?;
    numeric::div(left, right)
}

fn remainder(left: &dyn Datum, right: &dyn Datum) -> std::result::Result<ArrayRef, ArrowError> {
    no_zero(left, right)?;
    numeric::rem(left, right)
}

/// That nothing is divided by zero. Nothing is divided where one of both is null.
fn no_zero(left: &dyn Datum, right: &dyn Datum) -> std::result::Result<(), ArrowError> {
    let ((left, left_is_scalar), (right, right_is_scalar)) = (left.get(), right.get());
    let rows = if left_is_scalar { right.len() } else { left.len() };
    let is_zero = |row: usize| match right.data_type() {
        DataType::Float64 => right.as_primitive::<Float64Type>().value(row) == 0.0,
        DataType::Float32 => right.as_primitive::<Float32Type>().value(row) == 0.0,
        _ => false,
    };
    let is_wrong = |row: usize| {
        let (left_row, right_row) = (if left_is_scalar { 0 } else { row }, if right_is_scalar { 0 } else { row });
        left.is_valid(left_row) && right.is_valid(right_row) && is_zero(right_row)
    };
    if (0..rows).any(is_wrong) { Err(ArrowError::DivideByZero) } else { Ok(()) }
}
