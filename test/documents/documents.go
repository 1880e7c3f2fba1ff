// Package documents reads the project's Markdown, so that its test can hold it to what
// there is: links, names, and two languages that say the same.
package documents

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// page is a Markdown file.
type page struct {
	headings []heading
	blocks   []block
	tables   [][]string // the first cells of each
	spans    []string   // `code` in its text
	links    []string
	prose    string // all but the blocks
	problems []string
}

type heading struct {
	level        int
	text, anchor string
}

type block struct{ language, text string }

var (
	headingLine = regexp.MustCompile(`^(#+) (.+)$`)
	span        = regexp.MustCompile("`([^`]+)`")
	link        = regexp.MustCompile(`\]\(([^()\s]+(?:\([^()]*\))?)\)|(?:src|srcset|href)="([^"]+)"`)
	linkText    = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// parse reads a page, and notes what is wrong with its form.
func parse(text string) page {
	var p page
	var prose strings.Builder
	var b *block
	anchors := map[string]int{}
	before, level, inTable := "", 0, false
	problem := func(line int, what string) { p.problems = append(p.problems, fmt.Sprintf("line %d: %s", line, what)) }
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		trimmed := strings.TrimSpace(line)
		language, fence := strings.CutPrefix(trimmed, "```")
		switch {
		case fence && b == nil:
			if language == "" {
				problem(i+1, "a block without a language")
			}
			b = &block{language: language}
		case fence:
			p.blocks, b = append(p.blocks, *b), nil
		case b != nil:
			b.text += trimmed + "\n"
		default:
			prose.WriteString(line + "\n")
			if strings.TrimRight(line, " ") != line {
				problem(i+1, "spaces at the end")
			}
			if m := headingLine.FindStringSubmatch(line); m != nil {
				if before != "" || i+1 < len(lines) && lines[i+1] != "" {
					problem(i+1, "a heading wants an empty line before and after it")
				}
				if len(m[1]) > level+1 || level > 0 && len(m[1]) == 1 {
					problem(i+1, "a heading that skips a level, or a second title")
				}
				level = len(m[1])
				a := anchor(m[2])
				if anchors[a]++; anchors[a] > 1 {
					problem(i+1, "a heading that is there already")
				}
				p.headings = append(p.headings, heading{level, m[2], a})
			}
			table := strings.HasPrefix(line, "|")
			if table && !inTable {
				if before != "" {
					problem(i+1, "a table wants an empty line before it")
				}
				p.tables = append(p.tables, nil)
			}
			if inTable = table; table {
				last := len(p.tables) - 1
				p.tables[last] = append(p.tables[last], strings.TrimSpace(strings.SplitN(line, "|", 3)[1]))
			}
		}
		before = trimmed
	}
	if b != nil {
		problem(len(lines), "a block that does not end")
	}
	p.prose = prose.String()
	for _, m := range span.FindAllStringSubmatch(p.prose, -1) {
		p.spans = append(p.spans, m[1])
	}
	for _, m := range link.FindAllStringSubmatch(span.ReplaceAllString(p.prose, ""), -1) {
		p.links = append(p.links, m[1]+m[2])
	}
	// a link whose text is code
	for _, m := range regexp.MustCompile("`\\]\\(([^()\\s]+)\\)").FindAllStringSubmatch(p.prose, -1) {
		p.links = append(p.links, m[1])
	}
	return p
}

// anchor is a heading's address, as GitHub makes it.
func anchor(text string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(linkText.ReplaceAllString(text, "$1")) {
		switch {
		case r == ' ':
			b.WriteRune('-')
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}

// code is everything in a page that a reader may type.
func (p page) code() string {
	var b strings.Builder
	for _, block := range p.blocks {
		b.WriteString(block.text)
	}
	return b.String() + strings.Join(p.spans, "\n") + "\n"
}
