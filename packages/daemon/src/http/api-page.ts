/** The API for a person with a browser, at the path where others have theirs: what there is, who may, and where the document is. No script. */
import { endpoint } from '@dormouse/api/endpoints.ts'
import { ROUTE_IDS, type Route, routes } from '@dormouse/api/routes.ts'

export const API_PAGE_HEADERS = {
  'content-type': 'text/html; charset=utf-8',
  'content-security-policy': "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
} as const

const STYLE =
  'body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em}td{padding:.2em 1em .2em 0;vertical-align:top}'

export function apiPage(version: string): string {
  const tags = [...new Set(ROUTE_IDS.map((id) => routes[id].tag))]
  const sections = tags.map((tag) => {
    const rows = ROUTE_IDS.filter((id) => routes[id].tag === tag).map((id) => {
      const { method, path } = endpoint(id)
      const { scope, summary, later }: Route = routes[id]
      const cells = [`<code>${method} ${text(path)}</code>`, text(later === undefined ? summary : `${summary} (not yet)`), text(scope)]
      return `<tr id="${id}">${cells.map((cell) => `<td>${cell}</td>`).join('')}</tr>`
    })
    return `<h2>${text(tag)}</h2>\n<table>\n${rows.join('\n')}\n</table>`
  })
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>dormouse API</title><style>${STYLE}</style>
<h1>dormouse ${text(version)}</h1>
<p>As an OpenAPI document: <a href="/openapi.json">/openapi.json</a>, <a href="/spec.yaml">/spec.yaml</a>. Behind each is the scope that a token needs.</p>
${sections.join('\n')}
</html>
`
}

const ENTITIES: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }
const text = (plain: string): string => plain.replace(/[&<>"']/g, (sign) => ENTITIES[sign] ?? sign)
