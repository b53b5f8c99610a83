// A file of its own, since the page's Content-Security-Policy takes no script inside the page.

// Where the service is, whatever path a proxy may have put before it.
const root = new URL("..", document.currentScript.src).href;

SwaggerUIBundle({
  url: `${root}openapi.json`,
  dom_id: "#swagger-ui",
  deepLinking: true,
  // By default a public service is asked whether the document is valid.
  validatorUrl: null,
  // The document does not know where it was asked for.
  plugins: [() => ({
    statePlugins: {spec: {wrapActions: {
      updateJsonSpec: (update) => (document) => update({...document, servers: [{url: root.slice(0, -1)}]}),
    }}},
  })],
});
