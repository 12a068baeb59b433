//! Rules for Rust sources: import edges by rank, budgets, and what only tests or named files may do.

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Block, ExprMethodCall, ExprUnsafe, ImplItemFn, Item, ItemFn, ItemForeignMod,
    ItemImpl, ItemMod, ItemTrait, ItemUse, Meta, Safety, Signature, TraitItemFn, UseTree,
};

use super::Finding;

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 500;
const PARAMETERS_MAX: usize = 5;
const IMPL_TYPE_PARAMETERS_MAX: usize = 3;
const CODE_COLUMNS_MAX: usize = 100;
const PROSE_COLUMNS_MAX: usize = 120;

/// A module of the gateway imports only modules of lower ranks; ARCHITECTURE.md says what each owns.
const RANKS: [(&str, u8); 26] = [
    ("base", 0),
    ("observe", 1),
    ("config", 1),
    ("http", 2),
    ("rules", 2),
    ("shared", 2),
    ("tls", 2),
    ("outbound", 2),
    ("store", 3),
    ("route", 3),
    ("kernel", 3),
    ("discovery", 3),
    ("auth", 4),
    ("feedback", 4),
    ("feedback", 4),
    ("limit", 5),
    ("cache", 6),
    ("transform", 6),
    ("upstream", 6),
    ("compose", 7),
    ("request", 8),
    ("listen", 9),
    ("admin", 10),
    ("control", 11),
    ("cli", 12),
    // The wiring of crate roots may name everything.
    ("main", u8::MAX),
];
const RANKED: &str = "gateway/src/";

/// The files that may contain `unsafe`: each says why at its top and has a SAFETY comment at each block.
const UNSAFE_FILES: [&str; 9] = [
    "gateway-common/src/layout.rs",
    "gateway/src/base/readable.rs",
    "gateway/src/rules/tables/mapping.rs",
    "gateway-ebpf/src/account.rs",
    "gateway-ebpf/src/clock.rs",
    "gateway-ebpf/src/maps.rs",
    "gateway-ebpf/src/memory.rs",
    "gateway-ebpf/src/sockets.rs",
    "tests/src/bpf.rs",
];

pub(super) fn check(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = check_lines(file, text);
    match syn::parse_file(text) {
        Ok(syntax) => {
            let mut visitor = Visitor::new(file, text);
            if syntax.items.is_empty() {
                visitor.find_at(1, "an empty module".to_owned());
            }
            visitor.visit_file(&syntax);
            findings.extend(visitor.findings);
        }
        Err(error) => {
            let line = error.span().start().line;
            findings.push(Finding { file: file.to_owned(), line, text: error.to_string() });
        }
    }
    findings
}

/// Whether a file holds nothing but tests.
fn is_test_file(file: &str) -> bool {
    file.ends_with("tests.rs") || file.contains("/tests/")
}

fn check_lines(file: &str, text: &str) -> Vec<Finding> {
    let finding = |line, text: String| Finding { file: file.to_owned(), line, text };
    let mut findings = Vec::new();
    if !text.starts_with("//!") {
        findings.push(finding(1, "begin with //! and what the file owns and refuses".to_owned()));
    }
    for (index, line) in text.lines().enumerate() {
        let columns = line.chars().count();
        // What rustfmt leaves as it is: comments, and strings, which it cannot break.
        let is_prose = line.trim_start().starts_with("//") || line.contains('"');
        let most = if is_prose { PROSE_COLUMNS_MAX } else { CODE_COLUMNS_MAX };
        if columns > most {
            findings.push(finding(index + 1, format!("{columns} columns, at most {most}")));
        }
    }
    let production = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
    if production > FILE_LINES_MAX && !is_test_file(file) {
        let text = format!("{production} lines before the tests, at most {FILE_LINES_MAX}");
        findings.push(finding(FILE_LINES_MAX + 1, text));
    }
    findings
}

struct Visitor<'a> {
    file: &'a str,
    lines: Vec<&'a str>,
    /// The module of the gateway that the file belongs to, if it is ranked.
    module: Option<&'a str>,
    /// How many `super` lead from here to the root of the crate.
    depth: usize,
    in_test: bool,
    /// Where somebody else decides about signatures.
    in_trait_impl: bool,
    findings: Vec<Finding>,
}

impl<'a> Visitor<'a> {
    fn new(file: &'a str, text: &'a str) -> Self {
        let parts: Vec<&str> = file
            .strip_prefix(RANKED)
            .map(|path| path.trim_end_matches(".rs").split('/').collect())
            .unwrap_or_default();
        let depth = match parts.last() {
            Some(&("mod" | "lib" | "main")) => parts.len() - 1,
            _ => parts.len(),
        };
        Self {
            file,
            lines: text.lines().collect(),
            module: parts.first().copied().filter(|module| *module != "lib"),
            depth,
            in_test: is_test_file(file),
            in_trait_impl: false,
            findings: Vec::new(),
        }
    }

    fn find_at(&mut self, line: usize, text: String) {
        let finding = Finding { file: self.file.to_owned(), line, text };
        // A group of imports is one mistake.
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    fn find(&mut self, span: Span, text: String) {
        self.find_at(span.start().line, text);
    }

    /// Visits something that may be for tests alone.
    fn within(&mut self, attributes: &[Attribute], work: impl FnOnce(&mut Self)) {
        let outer = self.in_test;
        self.in_test |= attributes.iter().any(is_for_tests);
        work(self);
        self.in_test = outer;
    }

    fn function(&mut self, signature: &Signature, body: Option<&Block>) {
        let name = &signature.ident;
        let parameters = signature.inputs.len();
        if parameters > PARAMETERS_MAX && !self.in_trait_impl {
            let text = format!("{name} has {parameters} parameters, at most {PARAMETERS_MAX}");
            self.find(name.span(), text);
        }
        if matches!(signature.safety, Safety::Unsafe(_)) {
            self.unsafety(name.span());
        }
        let Some(body) = body else { return };
        let first = signature.fn_token.span().start().line;
        let last = body.brace_token.span.close().end().line;
        let within = self.lines.iter().skip(first - 1).take(last + 1 - first);
        let is_code = |line: &&&str| !line.trim().is_empty() && !line.trim().starts_with("//");
        let lines = within.filter(is_code).count();
        if lines > FUNCTION_LINES_MAX {
            let text = format!("{name} has {lines} lines of code, at most {FUNCTION_LINES_MAX}");
            self.find(name.span(), text);
        }
    }

    fn unsafety(&mut self, span: Span) {
        if !UNSAFE_FILES.contains(&self.file) {
            self.find(span, "unsafe outside the files that tidy names for it".to_owned());
        }
    }

    /// Checks the edge that a path opens, given its first segments.
    fn edge(&mut self, span: Span, segments: &[String]) {
        let Some(module) = self.module else { return };
        let supers = segments.iter().take_while(|segment| *segment == "super").count();
        let target = match segments.first().map(String::as_str) {
            Some("crate") => segments.get(1),
            Some("super") if supers >= self.depth => segments.get(supers),
            _ => None,
        };
        let Some(target) = target.filter(|target| *target != module) else { return };
        let rank = |name: &str| RANKS.iter().find(|(known, _)| *known == name).map(|(_, r)| *r);
        match (rank(module), rank(target)) {
            (Some(own), Some(other)) if other < own => {}
            (Some(own), Some(other)) => {
                let text = format!("{module} (rank {own}) must not know {target} (rank {other})");
                self.find(span, text);
            }
            (None, _) => self.find(span, format!("module {module} has no rank in tidy's table")),
            (_, None) => self.find(span, format!("module {target} has no rank in tidy's table")),
        }
    }

    fn use_tree(&mut self, tree: &UseTree, path: &mut Vec<String>) {
        match tree {
            UseTree::Path(step) => {
                path.push(step.ident.to_string());
                self.use_tree(&step.tree, path);
                path.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.use_tree(tree, path);
                }
            }
            UseTree::Name(name) => self.use_leaf(tree.span(), path, name.ident.to_string()),
            UseTree::Rename(rename) => self.use_leaf(tree.span(), path, rename.ident.to_string()),
            UseTree::Glob(_) => self.edge(tree.span(), path),
        }
    }

    fn use_leaf(&mut self, span: Span, path: &mut Vec<String>, leaf: String) {
        path.push(leaf);
        self.edge(span, path);
        path.pop();
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let Some((_, items)) = &item.content else { return };
        if items.iter().all(|item| matches!(item, Item::Verbatim(_))) {
            self.find(item.ident.span(), format!("module {} is empty", item.ident));
        }
        self.depth += 1;
        self.within(&item.attrs, |visitor| visit::visit_item_mod(visitor, item));
        self.depth -= 1;
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        self.function(&item.sig, Some(&item.block));
        self.within(&item.attrs, |visitor| visit::visit_item_fn(visitor, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        self.function(&item.sig, Some(&item.block));
        self.within(&item.attrs, |visitor| visit::visit_impl_item_fn(visitor, item));
    }

    fn visit_trait_item_fn(&mut self, item: &'ast TraitItemFn) {
        self.function(&item.sig, item.default.as_ref());
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let parameters = item.generics.type_params().count();
        if parameters > IMPL_TYPE_PARAMETERS_MAX {
            let most = IMPL_TYPE_PARAMETERS_MAX;
            self.find(item.span(), format!("an impl of {parameters} types, at most {most}"));
        }
        if item.unsafety.is_some() {
            self.unsafety(item.span());
        }
        self.in_trait_impl = item.trait_.is_some();
        self.within(&item.attrs, |visitor| visit::visit_item_impl(visitor, item));
        self.in_trait_impl = false;
    }

    fn visit_item_trait(&mut self, item: &'ast ItemTrait) {
        if item.unsafety.is_some() {
            self.unsafety(item.span());
        }
        visit::visit_item_trait(self, item);
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast ItemForeignMod) {
        self.unsafety(item.span());
        visit::visit_item_foreign_mod(self, item);
    }

    fn visit_expr_unsafe(&mut self, expression: &'ast ExprUnsafe) {
        self.unsafety(expression.span());
        visit::visit_expr_unsafe(self, expression);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        let is_unwrap = call.method == "unwrap" || call.method == "unwrap_err";
        if is_unwrap && call.args.is_empty() && !self.in_test {
            self.find(call.method.span(), format!(".{}() outside tests", call.method));
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.use_tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.edge(path.span(), &segments);
        visit::visit_path(self, path);
    }
}

fn is_for_tests(attribute: &Attribute) -> bool {
    match &attribute.meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    }
}

#[cfg(test)]
mod tests;
