package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shortestDoc is the minimum length of a package comment in bytes.
const shortestDoc = 200

// file is a parsed source file other than a test.
type file struct {
	name string // within the module
	pkg  string
	fset *token.FileSet
	ast  *ast.File
}

func (f file) at(n ast.Node) string {
	p := f.fset.Position(n.Pos())
	return f.name + ":" + strings.TrimPrefix(p.String(), p.Filename+":")
}

func sources(t *testing.T) []file {
	t.Helper()
	var files []file
	for _, p := range list(t, "./...") {
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			parsed, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file{name: filepath.Join(p.path(), name), pkg: p.path(), fset: fset, ast: parsed})
		}
	}
	return files
}

func TestPackagesExplainThemselves(t *testing.T) {
	docs := map[string]string{}
	for _, f := range sources(t) {
		docs[f.pkg] += f.ast.Doc.Text()
	}
	for pkg, doc := range docs {
		want := "Package " + filepath.Base(pkg) + " "
		if name, ok := strings.CutPrefix(pkg, "cmd/"); ok {
			want = "Command " + name + " "
		}
		if !strings.HasPrefix(doc, want) && !matches("e2e/...", pkg) {
			t.Errorf("the doc comment of %s does not begin with %q", pkg, want)
		}
		if len(doc) < shortestDoc {
			t.Errorf("the doc comment of %s is too short: %q", pkg, doc)
		}
	}
}

func TestNothingHappensBeforeMain(t *testing.T) {
	for _, f := range sources(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: an init function", f.at(fn))
			}
		}
	}
}

// Package-level variables are tables and sentinel errors: none is assigned to, and none has a type
// that is meant to be modified.
func TestNoStateAtPackageLevel(t *testing.T) {
	mutable := regexp.MustCompile(`^(sync\.(Mutex|RWMutex|Map|WaitGroup|Pool)|atomic\.\w+(\[.*\])?|chan .*)$`)
	vars := map[string]map[string]bool{} // by package
	files := sources(t)
	for _, f := range files {
		for _, spec := range packageVars(f.ast) {
			for _, name := range spec.Names {
				if vars[f.pkg] == nil {
					vars[f.pkg] = map[string]bool{}
				}
				vars[f.pkg][name.Name] = name.Name != "_"
			}
			if spec.Type != nil && mutable.MatchString(typeText(spec.Type)) {
				t.Errorf("%s: a package-level %s", f.at(spec), typeText(spec.Type))
			}
		}
	}
	for _, f := range files {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			local := declared(fn)
			for _, target := range assigned(fn.Body) {
				if vars[f.pkg][target.Name] && !local[target.Name] {
					t.Errorf("%s: assignment to the package's %s", f.at(target), target.Name)
				}
			}
		}
	}
}

func packageVars(f *ast.File) []*ast.ValueSpec {
	var specs []*ast.ValueSpec
	for _, d := range f.Decls {
		if gen, ok := d.(*ast.GenDecl); ok && gen.Tok == token.VAR {
			for _, s := range gen.Specs {
				if v, ok := s.(*ast.ValueSpec); ok {
					specs = append(specs, v)
				}
			}
		}
	}
	return specs
}

// typeText formats the types that matter here.
func typeText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return typeText(e.X) + "." + e.Sel.Name
	case *ast.IndexExpr:
		return typeText(e.X) + "[" + typeText(e.Index) + "]"
	case *ast.ChanType:
		return "chan " + typeText(e.Value)
	}
	return ""
}

// declared returns every name that fn declares.
func declared(fn *ast.FuncDecl) map[string]bool {
	names := map[string]bool{}
	add := func(e ast.Expr) {
		if id, ok := e.(*ast.Ident); ok {
			names[id.Name] = true
		}
	}
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			for _, name := range n.Names {
				add(name)
			}
		case *ast.ValueSpec:
			for _, name := range n.Names {
				add(name)
			}
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, e := range n.Lhs {
					add(e)
				}
			}
		case *ast.RangeStmt:
			if n.Tok == token.DEFINE {
				add(n.Key)
				add(n.Value)
			}
		}
		return true
	})
	return names
}

// assigned returns the variables that statements in body assign to, wholly or partly.
func assigned(body *ast.BlockStmt) []*ast.Ident {
	var targets []*ast.Ident
	add := func(e ast.Expr) {
		if id := root(e); id != nil {
			targets = append(targets, id)
		}
	}
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					add(e)
				}
			}
		case *ast.IncDecStmt:
			add(n.X)
		}
		return true
	})
	return targets
}

func root(e ast.Expr) *ast.Ident {
	switch e := e.(type) {
	case *ast.Ident:
		return e
	case *ast.SelectorExpr:
		return root(e.X)
	case *ast.IndexExpr:
		return root(e.X)
	case *ast.StarExpr:
		return root(e.X)
	case *ast.ParenExpr:
		return root(e.X)
	}
	return nil
}

func TestEveryRPCIsInTheFileOfItsName(t *testing.T) {
	rpcs := map[string]bool{}
	for _, service := range []reflect.Type{
		reflect.TypeFor[runtimeapi.RuntimeServiceServer](), reflect.TypeFor[runtimeapi.ImageServiceServer](),
	} {
		for i := range service.NumMethod() {
			if m := service.Method(i); m.IsExported() {
				rpcs[m.Name] = false
			}
		}
	}
	for _, f := range sources(t) {
		if f.pkg != "cri" && f.pkg != "imageservice" && f.pkg != "runtimeservice" {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv == nil {
				continue
			}
			if _, isRPC := rpcs[fn.Name.Name]; !isRPC || !takesRequest(fn) {
				continue
			}
			rpcs[fn.Name.Name] = true
			if want := fileOf(fn.Name.Name); filepath.Base(f.name) != want {
				t.Errorf("%s: %s belongs in %s", f.at(fn), fn.Name.Name, want)
			}
		}
	}
	for name, found := range rpcs {
		if !found {
			t.Errorf("no package implements %s", name)
		}
	}
}

// takesRequest distinguishes an RPC from another method of the same name.
func takesRequest(fn *ast.FuncDecl) bool {
	for _, p := range fn.Type.Params.List {
		if star, ok := p.Type.(*ast.StarExpr); ok && strings.HasSuffix(typeText(star.X), "Request") {
			return true
		}
	}
	return false
}

// fileOf returns the file of an RPC. A streaming list is in the file of the list.
func fileOf(rpc string) string {
	if rpc == "StreamPodSandboxes" {
		rpc = "ListPodSandbox" // the one list with another name
	}
	if list, ok := strings.CutPrefix(rpc, "Stream"); ok {
		rpc = "List" + list
	}
	return snake(rpc) + ".go"
}

func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if i > 0 && unicode.IsUpper(r) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
