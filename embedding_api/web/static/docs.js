// A file of its own, because the page's Content-Security-Policy forbids scripts inside the page.

// The address of the service, with the path that a proxy puts before it.
const root = new URL("..", document.currentScript.src).href;

SwaggerUIBundle({
  url: `${root}openapi.json`,
  dom_id: "#swagger-ui",
  deepLinking: true,
  // By default Swagger UI sends the document's address to a public service that validates it.
  validatorUrl: null,
  // The document does not contain the address of the service.
  plugins: [() => ({
    statePlugins: {spec: {wrapActions: {
      updateJsonSpec: (update) => (document) => update({...document, servers: [{url: root.slice(0, -1)}]}),
    }}},
  })],
});
