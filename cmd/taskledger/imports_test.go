package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const houseModule = "taskledger"

// houseLayers names every top-level folder, and those inside one that have rules of their own, with the other folders
// that its non-test files may import.
var houseLayers = map[string][]string{
	"cmd": {
		"httpapi",
		"httpapi/admin",
		"httpapi/auth",
		"command",
		"projections",
		"query",
		"events",
		"migrations",
	},
	"cmd/taskbench": {"migrations"},
	"httpapi":       {"httpapi/auth", "command", "query", "events"},
	"httpapi/admin": {"query"},
	"httpapi/auth":  nil,
	"command":       {"events"},
	"projections":   {"events"},
	"query":         {"events"},
	"events":        nil,
	"migrations":    nil,
}

// keptTo names the only folders that may import what begins with the key. The rival of taskbench is built with Echo
// too.
var keptTo = map[string][]string{
	"github.com/labstack/echo":           {"httpapi", "cmd/taskbench"},
	"github.com/ThreeDotsLabs/watermill": {"events", "projections"},
	"github.com/caarlos0/env":            {"cmd"},
	"github.com/joho/godotenv":           {"cmd"},
}

// sourcePackage is what the rules look at: the non-test files of one package, for every platform.
type sourcePackage struct {
	path            string
	imports         []string
	environmentUses []string
}

func TestHouseKeepsItsImportRules(t *testing.T) {
	t.Parallel()
	root := moduleRoot(t)
	packages := listPackages(t, root)
	if len(packages) == 0 {
		t.Fatal("go list names no package")
	}
	for _, broken := range brokenRules(packages, topFolders(t, root)) {
		t.Error(broken)
	}
}

const (
	echo      = "github.com/labstack/echo/v4"
	watermill = "github.com/ThreeDotsLabs/watermill/message"
)

// forbiddenImports are some that each break one rule.
var forbiddenImports = []struct{ folder, imports string }{
	{"query", "taskledger/projections"},
	{"query", "taskledger/migrations"},
	{"command", "taskledger/query"},
	{"command", "taskledger/projections"},
	{"projections", "taskledger/command"},
	{"httpapi", "taskledger/projections"},
	{"httpapi", "taskledger/migrations/testdb"},
	{"command", "taskledger/httpapi"},
	{"httpapi", "taskledger/cmd/taskledger"},
	{"cmd/taskbench", "taskledger/events"},
	{"events", "taskledger/command"},
	{"migrations/testdb", "taskledger/events"},
	{"command", echo},
	{"cmd/taskledger", echo},
	{"httpapi/auth", "taskledger/httpapi"},
	{"httpapi/auth", "taskledger/events"},
	{"httpapi/admin", "taskledger/projections"},
	{"httpapi", "taskledger/httpapi/admin"},
	{"httpapi/auth", echo},
	{"httpapi/auth/x", echo},
	{"command", "taskledger/httpapi/auth"},
	{"command", watermill},
	{"cmd/taskledger", "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"},
	{"httpapi", "github.com/joho/godotenv"},
}

func TestForbiddenImportsAreReported(t *testing.T) {
	t.Parallel()
	for _, tt := range forbiddenImports {
		want := "taskledger/" + tt.folder + " imports " + tt.imports
		got := brokenRules([]sourcePackage{importing(tt.folder, tt.imports)}, nil)
		if !slices.Equal(got, []string{want}) {
			t.Errorf("got %q, want only %q", got, want)
		}
	}
}

func TestBrokenRulesAreReported(t *testing.T) {
	t.Parallel()
	for want, tt := range map[string]struct {
		pkg     sourcePackage
		folders []string
	}{
		"taskledger/events reads the environment: os.Getenv": {
			pkg: sourcePackage{path: "taskledger/events", environmentUses: []string{"os.Getenv"}},
		},
		"taskledger is in no folder of the house":            {pkg: sourcePackage{path: "taskledger"}},
		"taskledger/internal/x is in no folder of the house": {pkg: sourcePackage{path: "taskledger/internal/x"}},
		"folder util is not one of the house": {
			pkg: importing("query"), folders: []string{"query", "util"},
		},
	} {
		if got := brokenRules([]sourcePackage{tt.pkg}, tt.folders); !slices.Equal(got, []string{want}) {
			t.Errorf("got %q, want only %q", got, want)
		}
	}
}

func TestRulesAllowTheHouse(t *testing.T) {
	t.Parallel()
	packages := []sourcePackage{
		importing(
			"cmd/taskledger",
			"taskledger/httpapi",
			"taskledger/httpapi/admin",
			"taskledger/httpapi/auth",
			"taskledger/command",
			"taskledger/projections",
			"taskledger/query",
			"taskledger/events",
			"taskledger/migrations",
			"github.com/joho/godotenv",
			"os",
		),
		{path: "taskledger/cmd/taskbench", environmentUses: []string{"os.Getenv"}},
		importing("httpapi", "taskledger/httpapi/auth", "taskledger/command", "taskledger/query", "taskledger/events",
			"github.com/labstack/echo/v4/middleware"),
		importing("httpapi/admin", "taskledger/query", "net/http"),
		importing("httpapi/auth", "github.com/jackc/pgx/v5/pgxpool", "net/http"),
		importing("command", "taskledger/events"),
		importing("projections", "taskledger/events", "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"),
		importing("query", "taskledger/events", "github.com/jackc/pgx/v5"),
		importing("events", "github.com/ThreeDotsLabs/watermill"),
		importing("migrations/testdb", "taskledger/migrations", "taskledger/migrations/embedded"),
	}
	folders := []string{".ci", ".git", "cmd", "command", "events", "httpapi", "migrations", "projections", "query"}
	if broken := brokenRules(packages, folders); len(broken) > 0 {
		t.Errorf("reported as broken: %q", broken)
	}
}

func TestEnvironmentUsesAreFound(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, source string
		want         []string
	}{
		{"call", `import "os"; var x = os.Getenv("A")`, []string{"os.Getenv"}},
		{"value", `import "os"; var x = os.LookupEnv`, []string{"os.LookupEnv"}},
		{"renamed", `import sys "os"; var x = sys.Environ()`, []string{"os.Environ"}},
		{"in a function", `import "os"; func f() { if os.ExpandEnv("$A") == "" { return } }`, []string{"os.ExpandEnv"}},
		{"syscall", `import "syscall"; func f() { _, _ = syscall.Getenv("A") }`, []string{"syscall.Getenv"}},
		{"all of os", `import . "os"; var x = Getenv("A")`, []string{"os, imported with a dot"}},
		{"other use of os", `import "os"; var x = os.Args`, nil},
		{"other package", `import os "example.com/os"; var x = os.Getenv("A")`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			file, err := parser.ParseFile(
				token.NewFileSet(),
				"x.go",
				"package x; "+tt.source,
				parser.SkipObjectResolution,
			)
			if err != nil {
				t.Fatal(err)
			}
			if got := environmentUses(file); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func importing(folder string, paths ...string) sourcePackage {
	return sourcePackage{path: houseModule + "/" + folder, imports: paths}
}

// brokenRules returns a line for each rule of the house that the packages or the top-level folders break.
func brokenRules(packages []sourcePackage, folders []string) []string {
	var broken []string
	for _, pkg := range packages {
		broken = append(broken, brokenBy(pkg)...)
	}
	for _, folder := range folders {
		if _, known := houseLayers[folder]; !known && !strings.HasPrefix(folder, ".") {
			broken = append(broken, fmt.Sprintf("folder %s is not one of the house", folder))
		}
	}
	return broken
}

func brokenBy(pkg sourcePackage) []string {
	layer := layerOf(pkg.path)
	if _, known := houseLayers[layer]; !known {
		return []string{pkg.path + " is in no folder of the house"}
	}
	var broken []string
	for _, imported := range pkg.imports {
		if !mayImport(layer, imported) {
			broken = append(broken, pkg.path+" imports "+imported)
		}
	}
	if layer == "cmd" || strings.HasPrefix(layer, "cmd/") {
		return broken
	}
	for _, use := range pkg.environmentUses {
		broken = append(broken, pkg.path+" reads the environment: "+use)
	}
	return broken
}

func mayImport(layer, imported string) bool {
	if imported == houseModule || strings.HasPrefix(imported, houseModule+"/") {
		target := layerOf(imported)
		return target == layer || slices.Contains(houseLayers[layer], target)
	}
	for prefix, allowed := range keptTo {
		if strings.HasPrefix(imported, prefix) && !slices.Contains(allowed, layer) {
			return false
		}
	}
	return true
}

// layerOf is the innermost folder with rules that a package of ours is in, else its top-level folder; empty for the
// module's root.
func layerOf(pkg string) string {
	folder := strings.TrimPrefix(strings.TrimPrefix(pkg, houseModule), "/")
	for inner := folder; inner != "."; inner = path.Dir(inner) {
		if _, ruled := houseLayers[inner]; ruled {
			return inner
		}
	}
	top, _, _ := strings.Cut(folder, "/")
	return top
}

func environmentUses(file *ast.File) []string {
	names, uses := environmentPackages(file)
	ast.Inspect(file, func(node ast.Node) bool {
		selector, ok := node.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		name, ok := selector.X.(*ast.Ident)
		if ok && names[name.Name] != "" && readsEnvironment(selector.Sel.Name) {
			uses = append(uses, names[name.Name]+"."+selector.Sel.Name)
		}
		return true
	})
	return uses
}

func readsEnvironment(function string) bool {
	return slices.Contains([]string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}, function)
}

// environmentPackages maps the names by which a file knows os and syscall to those; a dot import hides its uses and so
// counts as one.
func environmentPackages(file *ast.File) (names map[string]string, dots []string) {
	names = map[string]string{}
	for _, spec := range file.Imports {
		path := specPath(spec)
		switch {
		case path != "os" && path != "syscall":
		case spec.Name == nil:
			names[path] = path
		case spec.Name.Name == ".":
			dots = append(dots, path+", imported with a dot")
		default:
			names[spec.Name.Name] = path
		}
	}
	return names, dots
}

func specPath(spec *ast.ImportSpec) string {
	path, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return spec.Path.Value
	}
	return path
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	mod := strings.TrimSpace(string(goCommand(t, ".", "env", "GOMOD")))
	if filepath.Base(mod) != "go.mod" {
		t.Fatalf("go env GOMOD: %q is no go.mod", mod)
	}
	return filepath.Dir(mod)
}

func goCommand(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return out
}

// listedPackage is what go list prints of a package; IgnoredGoFiles are the files for other platforms.
type listedPackage struct {
	ImportPath, Dir                   string
	GoFiles, CgoFiles, IgnoredGoFiles []string
}

func listPackages(t *testing.T, root string) []sourcePackage {
	t.Helper()
	out := goCommand(t, root, "list", "-json=ImportPath,Dir,GoFiles,CgoFiles,IgnoredGoFiles", "./...")
	var packages []sourcePackage
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var listed listedPackage
		err := decoder.Decode(&listed)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, readPackage(t, listed))
	}
}

func readPackage(t *testing.T, listed listedPackage) sourcePackage {
	t.Helper()
	pkg := sourcePackage{path: listed.ImportPath}
	for _, name := range slices.Concat(listed.GoFiles, listed.CgoFiles, listed.IgnoredGoFiles) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(
			token.NewFileSet(),
			filepath.Join(listed.Dir, name),
			nil,
			parser.SkipObjectResolution,
		)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range file.Imports {
			pkg.imports = append(pkg.imports, specPath(spec))
		}
		pkg.environmentUses = append(pkg.environmentUses, environmentUses(file)...)
	}
	return pkg
}

func topFolders(t *testing.T, root string) []string {
	t.Helper()
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	var folders []string
	for _, entry := range entries {
		if entry.IsDir() {
			folders = append(folders, entry.Name())
		}
	}
	return folders
}
