package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The pages that lead a newcomer through the code. They name files and
// functions, and a rename must not leave them pointing nowhere.
var guides = []string{"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"}

var (
	// guidedName is "`link.receive` in `internal/gateway/link.go`".
	guidedName = regexp.MustCompile("`([A-Za-z][\\w.]*)` in `([\\w./-]+\\.go)`")
	// drawnName is a line of the tree of calls in a doc.go: "lane.push  lane.go".
	drawnName = regexp.MustCompile(`(?m)^//\t[ ]*(?:go )?([A-Za-z][\w.]*)\s+(\w+\.go)\b`)
	// guidedPath is any path of the repository between backticks.
	guidedPath = regexp.MustCompile("`((?:api|cmd|docs|examples|internal|migrations|\\.ci)/[\\w./-]*)`")
)

// TestGuidesNameWhatExists checks that each path and each function that the
// guides name is there.
func TestGuidesNameWhatExists(t *testing.T) {
	root := filepath.Join("..", "..")
	names := 0
	for _, page := range guides {
		b, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			t.Fatal(err)
		}
		// A sentence may continue on the next line.
		text := strings.Join(strings.Fields(string(b)), " ")
		for _, m := range guidedPath.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s names %s: %v", page, m[1], err)
			}
		}
		for _, m := range guidedName.FindAllStringSubmatch(text, -1) {
			names++
			if declared := declaredIn(t, filepath.Join(root, m[2])); !slices.Contains(declared, m[1]) {
				t.Errorf("%s says that %s is in %s, which declares %q", page, m[1], m[2], declared)
			}
		}
	}
	if names < 10 {
		t.Errorf("the guides name %d functions: the pattern no longer finds them", names)
	}
}

// TestOperationsNameTests checks that the tests exist that show what a failure costs.
func TestOperationsNameTests(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "operate.md"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var tests []string
	for _, f := range files {
		tests = append(tests, declaredIn(t, f)...)
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(page), -1)
	for _, m := range named {
		if !slices.Contains(tests, m[1]) {
			t.Errorf("docs/operate.md names %s, which does not exist", m[1])
		}
	}
	if len(named) < 5 {
		t.Errorf("docs/operate.md names %d tests: the pattern no longer finds them", len(named))
	}
}

// TestDrawnCallsExist checks that each function in the package comments' trees of calls
// is in the file that is named beside it.
func TestDrawnCallsExist(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join("..", "..", "internal", "*", "doc.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range drawnName.FindAllStringSubmatch(string(b), -1) {
			names++
			if declared := declaredIn(t, filepath.Join(filepath.Dir(page), m[2])); !slices.Contains(declared, m[1]) {
				t.Errorf("%s draws %s in %s, which declares %q", page, m[1], m[2], declared)
			}
		}
	}
	if names < 50 {
		t.Errorf("the trees name %d functions: the pattern no longer finds them", names)
	}
}

// declaredIn lists a file's functions, types, constants and variables, and the methods
// and fields of its types as "type.name".
func declaredIn(t *testing.T, path string) (names []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Errorf("%v", err)
		return nil
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			names = append(names, receiverOf(d)+d.Name.Name)
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					names = append(names, spec.Name.Name)
					for _, member := range membersOf(spec.Type) {
						names = append(names, spec.Name.Name+"."+member)
					}
				case *ast.ValueSpec:
					for _, n := range spec.Names {
						names = append(names, n.Name)
					}
				}
			}
		}
	}
	return names
}

// membersOf lists the fields of a struct, or the methods of an interface.
func membersOf(e ast.Expr) (names []string) {
	var list *ast.FieldList
	switch e := e.(type) {
	case *ast.StructType:
		list = e.Fields
	case *ast.InterfaceType:
		list = e.Methods
	default:
		return nil
	}
	for _, f := range list.List {
		for _, n := range f.Names {
			names = append(names, n.Name)
		}
	}
	return names
}

// receiverOf returns "type." for a method, and "" for a function.
func receiverOf(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	name, ok := typ.(*ast.Ident)
	if !ok {
		return ""
	}
	return name.Name + "."
}
