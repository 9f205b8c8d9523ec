package httpapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/pb33f/go-yaml"
	"github.com/swaggest/swgui/v5/static"
)

//go:embed openapi.yaml
var openAPISource []byte

// openAPIYAML returns the description of the API as it is written. The caller must not change it.
func openAPIYAML() []byte { return openAPISource }

// openAPIJSON returns the same description as JSON, with the aliases of the YAML written out. The caller must not
// change it.
var openAPIJSON = sync.OnceValue(func() []byte {
	var document any
	if err := yaml.Unmarshal(openAPISource, &document); err != nil {
		panic(fmt.Sprintf("openapi.yaml: %v", err))
	}
	text, err := json.Marshal(document)
	if err != nil {
		panic(fmt.Sprintf("openapi.yaml: %v", err))
	}
	return text
})

// openAPIYAMLHandler serves the description of the API as it is written.
func openAPIYAMLHandler() http.Handler { return newStaticFile("openapi.yaml", openAPIYAML()) }

// openAPIJSONHandler serves the description of the API as JSON.
func openAPIJSONHandler() http.Handler { return newStaticFile("openapi.json", openAPIJSON()) }

// docsAssets are the files that the documentation page loads, below its own path.
var docsAssets = []string{
	"swagger-ui.css",
	"swagger-ui-bundle.js",
	"favicon-16x16.png",
	"favicon-32x32.png",
}

// docsHandler serves the interactive documentation at prefix ("/docs") and its assets below it, all of them from this
// binary.
func docsHandler(prefix string) http.Handler {
	page := newStaticFile("index.html", fmt.Appendf(nil, docsPage, prefix, docsStyle, docsScript))
	page.header.Set("Content-Security-Policy", strings.Join([]string{
		"default-src 'none'",
		"script-src 'self' " + cspHash(docsScript),
		"style-src 'self' " + cspHash(docsStyle),
		"img-src 'self' data:",
		"connect-src 'self'",
		"base-uri 'none'",
		"form-action 'none'",
		"frame-ancestors 'none'",
	}, "; "))

	files := map[string]http.Handler{prefix: page, prefix + "/": page}
	for _, name := range docsAssets {
		content, err := readAsset(name)
		if err != nil {
			panic(fmt.Sprintf("docs: %s: %v", name, err))
		}
		files[prefix+"/"+name] = newStaticFile(name, content)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		file, ok := files[r.URL.Path]
		if !ok {
			writeProblem(w, noPath())
			return
		}
		file.ServeHTTP(w, r)
	})
}

const docsPage = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>taskledger API</title>
<link rel="stylesheet" href="%[1]s/swagger-ui.css">
<link rel="icon" type="image/png" sizes="32x32" href="%[1]s/favicon-32x32.png">
<link rel="icon" type="image/png" sizes="16x16" href="%[1]s/favicon-16x16.png">
<style>%[2]s</style>
</head>
<body>
<div id="swagger-ui"></div>
<script src="%[1]s/swagger-ui-bundle.js"></script>
<script>%[3]s</script>
</body>
</html>
`

const docsStyle = `body { margin: 0; background: #fafafa; }`

const docsScript = `
SwaggerUIBundle({
  url: "/openapi.yaml",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
`

// cspHash is the source expression that lets an inline script or style with exactly this text run.
func cspHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// staticFile is content that is the same for everyone as long as the process lives.
type staticFile struct {
	name    string
	content []byte
	header  http.Header
}

// staticContentTypes are named here because the table of the machine knows some of them differently, or not at all.
var staticContentTypes = map[string]string{
	".css":  "text/css; charset=utf-8",
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".json": "application/json",
	".png":  "image/png",
	".yaml": "application/yaml",
}

func newStaticFile(name string, content []byte) *staticFile {
	sum := sha256.Sum256(content)
	return &staticFile{name: name, content: content, header: http.Header{
		"Content-Type":  {staticContentTypes[path.Ext(name)]},
		"Etag":          {`"` + hex.EncodeToString(sum[:8]) + `"`},
		"Cache-Control": {"no-cache"},
	}}
}

// readAsset reads a file that swgui embeds; it stores the large ones compressed.
func readAsset(name string) ([]byte, error) {
	content, err := static.FS.ReadFile(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return content, err
	}
	compressed, err := static.FS.Open(name + ".gz")
	if err != nil {
		return nil, err
	}
	defer compressed.Close()
	reader, err := gzip.NewReader(compressed)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(reader)
}

// ServeHTTP answers GET and HEAD: whole, or with 304.
func (f *staticFile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	maps.Copy(w.Header(), f.header)
	for _, other := range []string{"Range", "If-Match", "If-Unmodified-Since"} { // else it may refuse, in plain text
		r.Header.Del(other)
	}
	http.ServeContent(w, r, f.name, time.Time{}, bytes.NewReader(f.content))
}
