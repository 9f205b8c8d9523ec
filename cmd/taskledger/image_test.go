package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pb33f/go-yaml"
)

func TestDockerfileFitsTheModule(t *testing.T) {
	t.Parallel()
	build, final := stages(t)
	goVersion := regexp.MustCompile(`(?m)^go (\S+)$`).FindStringSubmatch(readTop(t, "go.mod"))
	image := strings.TrimPrefix(build[0].args[0], "golang:")
	if goVersion == nil || !strings.HasPrefix(goVersion[1]+".", image+".") {
		t.Errorf("it is built with Go %q, go.mod wants %q", image, goVersion)
	}
	port, _ := reflect.TypeFor[settings]().FieldByName("Port")
	for name, want := range map[string]string{
		"FROM": "scratch", "EXPOSE": port.Tag.Get("default"), "ENTRYPOINT": `["/taskledger"]`, "ENV": "", "CMD": "",
	} {
		if got := strings.Join(argsOf(final, name), " "); got != want {
			t.Errorf("%s %s, want %q", name, got, want)
		}
	}
	// Kubernetes knows only of a number that it is not root's.
	uid, _, _ := strings.Cut(strings.Join(argsOf(final, "USER"), ""), ":")
	if n, err := strconv.Atoi(uid); err != nil || n == 0 {
		t.Errorf("USER %q, want a number that is not 0", uid)
	}
}

func TestComposeFileFitsTheProgram(t *testing.T) {
	t.Parallel()
	file := readCompose(t)
	ours, server := file.Services["taskledger"], file.Services["postgres"]
	for name := range ours.Environment {
		if !slices.Contains(settingNames(), name) {
			t.Errorf("%s is no setting", name)
		}
	}
	for _, variable := range composeVariable.FindAllStringSubmatch(readTop(t, "compose.yaml"), -1) {
		if !slices.Contains(settingNames(), variable[1]) {
			t.Errorf("${%s} is no setting", variable[1])
		}
	}
	awaited := ours.DependsOn["postgres"].Condition
	if len(ours.DependsOn) != 1 || awaited != "service_healthy" || server.Healthcheck.Test == nil {
		t.Errorf("it waits for %v, want a healthy postgres", ours.DependsOn)
	}
	_, final := stages(t)
	port := argsOf(final, "EXPOSE")[0]
	if len(ours.Ports) != 1 || !strings.HasSuffix(ours.Ports[0], ":"+port) {
		t.Errorf("ports %v, want %s of the container", ours.Ports, port)
	}
	if len(server.Ports) != 0 {
		t.Errorf("PostgreSQL, whose password is no secret, is open on %v", server.Ports)
	}
	url, err := pgconn.ParseConfig(ours.Environment["DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	user, password := server.Environment["POSTGRES_USER"], server.Environment["POSTGRES_PASSWORD"]
	if url.Host != "postgres" || url.User != user || url.Database != user || url.Password != password {
		t.Errorf("DATABASE_URL is not that of the PostgreSQL beside it: %v", server.Environment)
	}
	for _, volume := range server.Volumes {
		name, _, _ := strings.Cut(volume, ":")
		if _, ok := file.Volumes[name]; !ok {
			t.Errorf("volume %s is not declared", name)
		}
	}
}

// instruction is one line of a Dockerfile.
type instruction struct {
	name string
	args []string
}

// stages returns the two of the Dockerfile: the one that builds, and the image.
func stages(t *testing.T) (build, final []instruction) {
	t.Helper()
	var found [][]instruction
	for line := range strings.Lines(readTop(t, "Dockerfile")) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if fields[0] == "FROM" {
			found = append(found, nil)
		}
		last := len(found) - 1
		found[last] = append(found[last], instruction{fields[0], fields[1:]})
	}
	if len(found) != 2 {
		t.Fatalf("the Dockerfile has %d stages, want 2", len(found))
	}
	return found[0], found[1]
}

func argsOf(stage []instruction, name string) []string {
	for _, i := range stage {
		if i.name == name {
			return i.args
		}
	}
	return nil
}

// compose is what the tests look at of a compose file.
type compose struct {
	Services map[string]struct {
		Environment map[string]string
		Ports       []string
		Volumes     []string
		DependsOn   map[string]struct{ Condition string } `json:"depends_on"`
		Healthcheck struct{ Test []string }
	}
	Volumes map[string]any
}

// composeVariable is ${NAME}, ${NAME:-default} or ${NAME:?message}.
var composeVariable = regexp.MustCompile(`\$\{([A-Z_]+)(?::(-|\?)([^}]*))?\}`)

func readCompose(t *testing.T) compose {
	t.Helper()
	var tree any
	if err := yaml.Unmarshal([]byte(readTop(t, "compose.yaml")), &tree); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	var file compose
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	return file
}

// composeEnv is the environment that the compose file starts the program with, given that of the one who calls compose.
func composeEnv(t *testing.T, given map[string]string) []string {
	t.Helper()
	var env []string
	for name, value := range readCompose(t).Services["taskledger"].Environment {
		env = append(env, name+"="+composeVariable.ReplaceAllStringFunc(value, func(variable string) string {
			parts := composeVariable.FindStringSubmatch(variable)
			if value, ok := given[parts[1]]; ok {
				return value
			}
			if parts[2] != "-" {
				t.Errorf("the compose file needs %s", parts[1])
			}
			return parts[3]
		}))
	}
	return env
}

func readTop(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(moduleRoot(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
